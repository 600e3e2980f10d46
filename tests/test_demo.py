"""The embedded model does what its card says, on the document of the demonstration."""

import json
import re
from pathlib import Path

from remamba.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = str(ROOT / "examples" / "demo_document.txt")
FACTS = {
    "Which flower does Elias Gibson like best?": "jasmine",
    "What is Ruth Spencer's lucky number?": "70",
    "In which town was Peter Radley born?": "Rome",
}


def asked(capsys, *options):
    assert main(["ask", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_demonstration_answers_right(capsys):
    question = re.search(r"DEMO_QUESTION \?= (.*)", (ROOT / "Makefile").read_text())[1]
    out = asked(capsys, "--document", DOCUMENT, "--question", question)
    assert out["document_tokens"] >= 3000
    (answer,) = out["answers"]
    assert answer["answer"].strip() == "purple"
    assert "coat of purple" in Path(DOCUMENT).read_text()
    best = max(answer["kept"], key=lambda word: word["score"])
    assert best["text"] == "purple"


def test_questions_through_a_memory_file(capsys, tmp_path):
    memory = str(tmp_path / "memory")
    assert main(["read", DOCUMENT, "--output", memory]) == 0
    capsys.readouterr()
    out = asked(capsys, "--memory", memory, *(x for q in FACTS for x in ("--question", q)))
    assert [answer["answer"].strip() for answer in out["answers"]] == list(FACTS.values())
