"""The embedded model does what its card says, on the document of the demonstration."""

import json
import re
from pathlib import Path

from remamba.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = str(ROOT / "examples" / "demo_document.txt")
FACTS = {
    "Which creature does Margaret Hooper look after?": "mule",
    "What is the occupation of Hugo Grant?": "joiner",
    "Which figure is the fortune of Ada Hooper?": "20",
}


def asked(capsys, *options):
    assert main(["ask", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_demonstration_answers_right(capsys):
    question = re.search(r"DEMO_QUESTION \?= (.*)", (ROOT / "Makefile").read_text())[1]
    out = asked(capsys, "--document", DOCUMENT, "--question", question)
    assert out["document_tokens"] >= 3000
    (answer,) = out["answers"]
    assert answer["answer"].strip() == "dentist"
    assert "say dentist" in Path(DOCUMENT).read_text()
    best = max(word["score"] for word in answer["kept"])
    # the words of a window have its score
    assert "dentist" in [word["text"] for word in answer["kept"] if word["score"] > best - 1e-3]


def test_questions_through_a_memory_file(capsys, tmp_path):
    memory = str(tmp_path / "memory")
    assert main(["read", DOCUMENT, "--output", memory]) == 0
    capsys.readouterr()
    out = asked(capsys, "--memory", memory, *(x for q in FACTS for x in ("--question", q)))
    assert [answer["answer"].strip() for answer in out["answers"]] == list(FACTS.values())
