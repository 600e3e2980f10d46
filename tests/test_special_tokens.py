"""A prompt opens with one bos at most, whoever writes it: tokenizer, template, training, asking."""

from __future__ import annotations

import ast
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from remamba.checkpoints.convert import convert
from remamba.engine.engine import Engine, Request
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.evals.items import Item, Prompt
from remamba.evals.prompting import Prompting
from remamba.evals.readers import TransformersReader, ends_of_line
from remamba.text import (
    chat_text,
    encode,
    end_tokens,
    has_chat_template,
    opening_tokens,
    plain_chat_template,
    settle_chat_template,
)
from remamba.train.data import read_data
from tests.tiny import TEXT, tiny_model
from tests.train.toy import write_rows

ROOT = Path(__file__).parent.parent
BOS, END, UNKNOWN = "<s>", "</s>", "<unk>"
TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATES = {"writes bos": "{{ bos_token }}" + TURNS, "writes none": TURNS}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who lives in Paris?"},
    {"role": "assistant", "content": "Tom Hill"},
]


def byte_level(added: str = "$A", *, bos: str | None = BOS) -> Any:
    """As GPT-NeoX's: byte-level BPE; `added` is what stands around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _learnt(backend, added, bos, alphabet=pre_tokenizers.ByteLevel.alphabet())


def metaspace(added: str = f"{BOS} $A") -> Any:
    """As LLaMA's: words begin with a mark, and the first word of a text gets one too."""
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _learnt(backend, added, BOS, alphabet=[*"[]\n"])


def _learnt(backend: Tokenizer, added: str, bos: str | None, alphabet: list[str]) -> Any:
    special = [UNKNOWN, BOS, END]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = [TEXT, "[system] [user] [assistant]", *(m["content"] for m in MESSAGES)]
    backend.train_from_iterator(texts * 3, trainer)
    numbers = [(token, backend.token_to_id(token)) for token in special]
    if added != "$A":
        backend.post_processor = TemplateProcessing(single=added, special_tokens=numbers)
    more = {"bos_token": bos} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, unk_token=UNKNOWN, **more
    )


TOKENIZERS = {
    "neox: adds nothing, its bos is its eos": lambda: byte_level(bos=END),
    "no bos at all": lambda: byte_level(bos=None),
    "adds nothing": lambda: byte_level(),
    "adds bos": lambda: byte_level(f"{BOS} $A"),
    "adds eos": lambda: byte_level(f"$A {END}"),
    "adds both": lambda: byte_level(f"{BOS} $A {END}"),
    "llama: adds bos": lambda: metaspace(),
    "llama: adds both": lambda: metaspace(f"{BOS} $A {END}"),
    "llama: adds nothing": lambda: metaspace("$A"),
}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def trained_on(folder: Path, tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens of a row's prompt and response, as training reads them."""
    file = write_rows(folder / "rows.jsonl", [row])
    data = read_data([file], tokenizer, vocab_size=400, max_length=200)
    return data.questions.row(0).tolist(), data.responses.row(0).tolist()


def opens_once(ids: list[int], tokenizer: Any, is_wanted: bool) -> bool:
    bos = tokenizer.bos_token_id
    return ids.count(bos) == is_wanted and (not is_wanted or ids[0] == bos)


@pytest.mark.parametrize(
    ("kind", "template"),
    [pair for pair in product(TOKENIZERS, TEMPLATES) if pair != ("no bos at all", "writes bos")],
)
def test_a_templates_bos_is_neither_lost_nor_doubled(
    kind: str, template: str, tmp_path: Path
) -> None:
    """Training, evaluation, the engine and transformers' own call read a chat as the same tokens.

    They differ in one case: a tokenizer opens its texts with a bos, and the template writes none.
    Then a chat opens with it as every other prompt does.
    """
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    opening = opening_tokens(tokenizer)
    # transformers' own: the template's text, nothing added
    theirs = tokenizer.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True)["input_ids"]
    expected = theirs if template == "writes bos" else [*opening, *theirs]
    if tokenizer.bos_token_id is not None:
        assert opens_once(expected, tokenizer, template == "writes bos" or bool(opening))

    text = chat_text(tokenizer, MESSAGES[:-1], where="here")
    assert encode(tokenizer, text).ids == expected
    prompt, response = trained_on(tmp_path, tokenizer, {"messages": MESSAGES})
    assert prompt == expected
    assert (
        response.count(tokenizer.eos_token_id)
        == 1
        == len(response) - response.index(tokenizer.eos_token_id)
    )
    engine = Engine(tiny_model(vocab_size=400), tokenizer)
    assert engine.submit(Request(prompt=text)).ids == expected
    question = Item("1", Prompt("", "Who lives in ", "Paris?"), ["x"], "who?")
    wrapped = Prompting(tokenizer, "longbench-e", "official").text("qasper", question).text
    alone = tokenizer.apply_chat_template([MESSAGES[1]], add_generation_prompt=True)["input_ids"]
    assert encode(tokenizer, wrapped).ids == (
        alone if template == "writes bos" else [*opening, *alone]
    )


@kinds
def test_prompts_open_as_their_tokenizer_does_and_never_end(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()
    own, end = tokenizer("Tom Hill")["input_ids"], tokenizer.eos_token_id
    expected = own[: len(own) - (own[-1] == end)]
    found = encode(tokenizer, "Tom Hill")
    assert found.ids == expected
    assert opening_tokens(tokenizer) == expected[: kind.count("adds bos") + kind.count("both")]
    row = {"prompt": "Tom Hill", "response": " lives"}
    assert trained_on(tmp_path, tokenizer, row)[0] == expected
    if opening_tokens(tokenizer):
        # one that was written by hand
        by_hand = encode(tokenizer, f"{BOS}Tom Hill")
        assert opens_once(by_hand.ids, tokenizer, True) and by_hand.offsets[0] == (0, 0)
        assert by_hand.offsets[1][0] >= len(BOS)


@pytest.mark.parametrize("added", ["$A", f"{BOS} $A"])
def test_evidence_is_found_behind_a_bos_of_either_kind(added: str, tmp_path: Path) -> None:
    tokenizer = byte_level(added)
    for document in ("Tom Hill lives in Paris.", f"{BOS}Tom Hill lives in Paris."):
        asked = {"question": " Where?", "response": " Paris", "evidence": " Paris"}
        file = write_rows(tmp_path / "rows.jsonl", [{"document": document, **asked}])
        data = read_data([file], tokenizer, vocab_size=400, max_length=200, score_target="evidence")
        ((first, stop),) = data.evidence.row(0).reshape(-1, 2).tolist()
        assert tokenizer.decode(data.contexts.row(0)[first:stop]) == " Paris"
        assert data.contexts.row(0).tolist() == encode(tokenizer, document).ids


@kinds
def test_chats_without_a_template_are_written_by_a_plain_one(kind: str, tmp_path: Path) -> None:
    """What training saves gives, by transformers' own call, what training read."""
    tokenizer = TOKENIZERS[kind]()
    assert "no chat template is written" in settle_chat_template(tokenizer, has_chats=False)
    assert not has_chat_template(tokenizer)
    prompt, response = trained_on(tmp_path, tokenizer, {"messages": MESSAGES})
    assert tokenizer.decode(prompt, skip_special_tokens=True).endswith(
        "Be brief.\n\nWho lives in Paris?"
    )
    assert "the chat template is plain" in settle_chat_template(tokenizer, has_chats=True)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    theirs = again.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True)["input_ids"]
    assert theirs == prompt
    assert trained_on(tmp_path, again, {"messages": MESSAGES}) == (prompt, response)
    assert "the chat template is plain" in settle_chat_template(again, has_chats=True)
    with pytest.raises(InputError, match="here: the tokenizer's chat template refuses"):
        chat_text(again, [MESSAGES[1], MESSAGES[2], MESSAGES[1]], where="here")


def test_a_template_of_its_own_stays() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TURNS
    assert settle_chat_template(tokenizer, has_chats=True) == "the chat template is the base's own"
    assert tokenizer.chat_template == TURNS != plain_chat_template(tokenizer)


def test_a_template_that_fails_is_refused_by_evaluation_too() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ raise_exception('only cats') }}"
    prompting = Prompting(tokenizer, "longbench-e", "official")
    with pytest.raises(InputError, match=r"longbench-e: .*refuses these messages \(only cats\)"):
        prompting.text("qasper", Item("1", Prompt("", "Tom.", " Who?"), ["x"], "who?"))


@pytest.mark.parametrize("form", ["jinja", "config", "none"])
def test_converting_carries_a_template_over_or_says_that_there_is_none(
    form: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    MambaForCausalLM(
        MambaConfig(vocab_size=400, hidden_size=24, num_hidden_layers=1)
    ).save_pretrained(source)
    tokenizer = byte_level()
    if form != "none":
        tokenizer.chat_template = {"default": TURNS, "other": "{{ messages }}"}
    tokenizer.save_pretrained(source)
    if form == "config":  # as transformers wrote it before version 5
        (source / "chat_template.jinja").unlink()
        file = source / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TURNS}))
    done = convert(source, target)
    assert done.tokenizer and done.chat_template == (form != "none")
    carried = AutoTokenizer.from_pretrained(target).chat_template
    expected = AutoTokenizer.from_pretrained(source).chat_template
    assert carried == expected and bool(carried) == (form != "none")


def test_texts_end_where_the_engine_ends_them_for_other_models_too() -> None:
    tokenizer = byte_level()
    model = tiny_model(vocab_size=400, eos_token_id=[7, 9])
    ends = end_tokens(model, tokenizer)
    assert ends == {7, 9} == Engine(model, tokenizer).eos
    line = SamplingOptions(9, **ends_of_line(tokenizer))
    asked = TransformersReader(model, tokenizer)._ends(line)
    assert asked["eos_token_id"] == sorted({7, 9, *line.stop_token_ids})
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id}


def test_one_room_decides_about_special_tokens_and_templates() -> None:
    """No other module of the library says what a tokenizer adds or skips, or writes a chat."""
    found = []
    for file in sorted((ROOT / "remamba").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in (
                "add_special_tokens", "add_generation_prompt", "skip_special_tokens",
            ):  # fmt: skip
                is_all = isinstance(node.value, ast.Constant) and node.value.value is False
                if node.arg != "skip_special_tokens" or not is_all:
                    found.append(file.name)
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("apply_chat_template", "chat_template", "bos_token")
                and ast.unparse(node.value).endswith("tokenizer")
            ):
                found.append(file.name)
    assert set(found) == {"text.py"}
