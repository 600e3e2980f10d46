"""lab/planted/make_base.py: tokenizer and weights that the small models begin with."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.planted import make_base
from remamba import ReMambaForCausalLM
from tests.lab.planted.library import books as library

SMALL = ["--vocab-size", "2048", "--hidden-size", "32", "--layers", "1", "--head-dim", "16"]
SMALL += ["--state-size", "8", "--sample-mb", "0.05", "--word-weight", "50"]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("books") / "books.jsonl.xz"
    lines = [json.dumps({"text": "\n\n".join(paragraphs)}) for paragraphs in library()]
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    return path


@pytest.fixture(scope="module")
def base(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of Mamba-2, made by the command."""
    base = tmp_path_factory.mktemp("base")
    assert make_base.main(["--books", str(books), "--output", str(base), *SMALL]) == 0
    return base


def mixer_of(base: Path) -> Any:
    return ReMambaForCausalLM.from_pretrained(base).backbone.layers[0].mixer


def test_mamba2_reads_under_the_token_before(base: Path) -> None:
    mixer = mixer_of(base)
    projection, taps = mixer.in_proj.weight, mixer.conv1d.weight[:, 0]
    assert torch.equal(projection[128:136], projection[136:144])  # B's rows are C's
    lag = 3 - taps.abs().argmax(dim=1)
    assert lag.tolist() == [0] * 64 + [1] * 8 + [0] * 8
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert ((step >= 0.01) & (step <= 0.1)).tolist() == [True] * 2 + [False] * 2  # slow, local
    assert (step[2:] >= 0.1).all() and (step[2:] <= 1).all()


def test_mamba_reads_under_the_token_before(base: Path, tmp_path: Path) -> None:
    words = ["--tokenizer", str(base), "--output", str(tmp_path / "mamba"), *SMALL]
    assert make_base.main([*words, "--family", "mamba"]) == 0
    mixer = mixer_of(tmp_path / "mamba")
    with torch.no_grad():
        mixer.conv1d.weight.copy_(mixer.conv1d.weight.round())  # only the token that each looks at
        hidden = torch.randn(2, 9, 32)
        x, _ = mixer.conv1d(mixer.in_proj(hidden)[..., :64], None, None)
        _, B, C = mixer.x_proj(x).split(mixer.sizes, dim=-1)
    torch.testing.assert_close(B[:, 1:], C[:, :-1])  # B is C of the token before
    assert not B[:, 0].any() and C[:, 0].abs().min() > 0
    # what SiLU gives all channels alike is no part of a key
    assert mixer.x_proj.weight[-8:].sum(dim=1).abs().max() < 1e-5
    step = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert (step >= 0.0099).all() and (step <= 0.101).all()


@pytest.mark.parametrize("size", ["2m", "10m", "16m"])
def test_both_families_have_as_many_parameters(size: str) -> None:
    counts = []
    for family in ("mamba", "mamba2"):
        args = make_base.build_parser().parse_args(
            ["--family", family, "--size", size, "--output", "x", "--no-recall-start"]
        )
        make_base.fill_in_size(args)
        with torch.device("meta"):
            model = make_base.make_model(args, 8192)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert max(counts) < 1.1 * min(counts)
    assert all(0.9 < count / 1e6 / int(size[:-1]) < 1.1 for count in counts)


def test_words_of_training_are_known_whole_and_those_of_the_test_get_no_weight(base: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    train, test = (make_base.fact_words(split) for split in ("train", "test"))
    unseen = [word for word in test if word not in train]
    assert make_base.tokens_per_word(tokenizer, train) < 1.5
    assert make_base.tokens_per_word(tokenizer, unseen) > 1.5
    assert tokenizer.decode(tokenizer.encode("naïve 🦉\n\n7").ids) == "naïve 🦉\n\n7"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give --books"),
        (["--books", "b.txt", "--tokenizer", "t"], "give --books"),
        (["--books", "b.txt"], "b.txt: there is no such file"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--books", "b.txt", "--head-dim", "7"], "--head-dim 7"),
        (["--books", "b.txt", "--vocab-size", "9"], "--vocab-size 9"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_base.main([*words, "--output", str(tmp_path / "new")]) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_of_books_alone_knows_no_word_of_the_facts() -> None:
    texts = list(make_base.training_text(library(), 0.01, 2000, 0, None, books_alone=True))
    paragraphs = {paragraph + "\n\n" for book in library() for paragraph in book}
    assert texts and set(texts) <= paragraphs
    given = {"megabytes": 0.05, "word_weight": 200}
    alone = make_base.train_tokenizer(library(), 700, **given, books_alone=True)
    usual = make_base.train_tokenizer(library(), 700, **given)
    words = make_base.fact_words("train")
    assert make_base.tokens_per_word(alone, words) > make_base.tokens_per_word(usual, words) + 0.5
