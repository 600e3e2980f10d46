"""The engine: greedy tokens as generate's, own draws for each request, text that is final."""

from __future__ import annotations

import copy
import gc
import math
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from remamba import CompressionConfig, InputError
from remamba.engine import entrance
from remamba.engine.engine import Completion, Engine, Request, SamplingOptions, fill_template
from remamba.engine.slots import GrowingRows, Slots, StaticRows
from remamba.methods.shorten import Drop
from tests.tiny import END, TEXT, tiny_model, tiny_tokenizer

FORMS: dict[str, CompressionConfig | bool] = {
    "off": False,
    "paper": CompressionConfig(start=0.1, length=0.5, keep_ratio=0.3),
    "exact": CompressionConfig(length=0.5, keep_ratio=0.3, adaption="exact"),
    "append": CompressionConfig(length=0.5, keep_ratio=0.3, placement="append"),
    "whole": CompressionConfig(length=1.0, keep_ratio=0.3, adaption="multiplicative"),
    "before": CompressionConfig(length=1.0, keep_ratio=0.3, placement="before_question"),
}
GREEDY = SamplingOptions(max_new_tokens=7)
DRAWN = SamplingOptions(max_new_tokens=40, temperature=1.0, top_k=50, top_p=0.95, seed=5)


def ids_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(1, 340, (length,), generator=generator).tolist()


def generated(model: Any, ids: list[int], count: int = 7, **options: Any) -> list[int]:
    """The new tokens that transformers' generate draws greedily."""
    out = model.generate(
        torch.tensor([ids], device=model.device),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
@pytest.mark.parametrize("form", ["off", "paper", "exact", "append"])
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_greedy_equals_generate(backbone: str, form: str, static: bool) -> None:
    """Unequal prompts, unequal ends, and more requests than slots."""
    model = tiny_model(backbone)
    prompts = [ids_of(length) for length in (9, 80, 1, 33, 12)]
    counts = [7, 3, 5, 1, 6]
    requests = [
        Request(prompt=ids, options=SamplingOptions(max_new_tokens=n), compression=FORMS[form])
        for ids, n in zip(prompts, counts, strict=True)
    ]
    done = Engine(model, tiny_tokenizer(), slots=2, static=static).run(requests)
    for ids, n, completion in zip(prompts, counts, done, strict=True):
        assert completion.token_ids == generated(model, ids, n, compression=FORMS[form])
        assert completion.finish_reason == "length"
        assert completion.prompt_tokens == len(ids)
        assert (completion.kept is None) == (form == "off")


def check_ends(device: str, static: bool) -> None:
    model = tiny_model().to(device)
    ids = ids_of(30)
    free = generated(model, ids, 8)
    requests, expected = [], []
    for least in (0, 1, 3, 8):
        for stop in (free[0], free[2], free[5]):
            options = SamplingOptions(8, stop_token_ids=(stop,), min_new_tokens=least)
            requests.append(Request(prompt=ids, options=options))
            row = torch.tensor([ids], device=device)
            out = model.generate(
                row, max_new_tokens=8, min_new_tokens=least, eos_token_id=[stop], do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
            expected.append(out[0, len(ids) :].tolist())
    done = Engine(model, tiny_tokenizer(), slots=3, static=static).run(requests)
    assert [found.token_ids for found in done] == expected
    assert {len(tokens) for tokens in expected} > {1, 8}
    for found, request in zip(done, requests, strict=True):
        ended = found.token_ids[-1] in request.options.stop_token_ids
        assert found.finish_reason == ("stop" if ended else "length")
        said = found.token_ids[:-1] if ended else found.token_ids
        assert found.text == tiny_tokenizer().decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
def test_tokens_that_end_and_the_least_number_equal_generate(static: bool) -> None:
    check_ends("cpu", static)


@pytest.mark.gpu
@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
def test_tokens_that_end_on_a_gpu(static: bool) -> None:
    check_ends("cuda", static)


@pytest.mark.parametrize("form", ["paper", "whole", "before"])
def test_the_scores_of_the_whole_span(form: str) -> None:
    """They are those that the kept ones were chosen by: the highest K of them, in their places."""
    model, compression = tiny_model(), FORMS[form]
    assert isinstance(compression, CompressionConfig)
    document = ids_of(60)
    questions = [ids_of(n) for n in (4, 9)]
    requests = [Request(document=document, question=q, compression=compression) for q in questions]
    for found in Engine(model, slots=2).run(requests):
        assert found.kept is not None and found.scored is not None
        scores, start = found.scored.scores, found.scored.start
        best = scores.topk(len(found.kept)).indices.sort().values + start
        assert [at for at, _ in found.kept] == best.tolist()
        for at, score in found.kept:
            assert scores[at - start].item() == pytest.approx(score, abs=1e-6)
        assert found.scored.stop - start == math.ceil(compression.length * 60)
    (plain,) = Engine(model).run([Request(document=document, question=[1], method="plain")])
    assert plain.scored is None


def test_documents_that_no_memory_can_stand_for_are_read_with_their_questions() -> None:
    """`drop` of the whole document leaves nothing to remember; alone and together the same."""
    model = tiny_model()
    requests = [
        Request(document=ids_of(20), question=ids_of(n), options=GREEDY, method=Drop(0.0, 1.0))
        for n in (3, 5, 4)
    ]
    together = Engine(model, slots=3).run(requests)
    alone = [Engine(model).run([request])[0] for request in requests]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


@pytest.mark.gpu
@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
@pytest.mark.parametrize("form", ["off", "paper", "whole"])
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_on_a_gpu(backbone: str, form: str, static: bool) -> None:
    """Greedy and drawn tokens of the GPU are those of the CPU."""
    document = ids_of(60)
    requests = [
        Request(document=document, question=ids_of(n), options=options, compression=FORMS[form])
        for n in (4, 9, 5)
        for options in (GREEDY, SamplingOptions(max_new_tokens=7, temperature=0.8, seed=n))
    ]
    model = tiny_model(backbone)
    expected = [c.token_ids for c in Engine(model, slots=2).run(requests)]
    done = Engine(model.to("cuda"), slots=2, static=static).run(requests)
    assert [c.token_ids for c in done] == expected


@pytest.mark.parametrize("form", ["off", "paper", "whole", "before"])
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_documents_and_questions_equal_generate(backbone: str, form: str) -> None:
    """A document in one part with its question, and one read once for several questions."""
    model = tiny_model(backbone)
    document, other = ids_of(50), ids_of(41)
    pairs = [
        (document, ids_of(5)),
        (other, ids_of(4)),
        (document, ids_of(9)),
        (document, ids_of(6)),
    ]
    requests = [
        Request(document=d, question=q, options=GREEDY, compression=FORMS[form]) for d, q in pairs
    ]
    for (d, q), completion in zip(pairs, Engine(model, slots=3).run(requests), strict=True):
        expected = model.generate(
            torch.tensor([d + q]),
            max_new_tokens=7,
            do_sample=False,
            pad_token_id=0,
            compression=FORMS[form],
            question_lengths=torch.tensor([len(q)]),
            return_dict_in_generate=True,
        )
        assert completion.token_ids == expected.sequences[0, len(d + q) :].tolist()
        assert completion.prompt_tokens == len(d + q)
        if form != "off":
            assert [i for i, _ in completion.kept] == expected.kept.index[0].tolist()
            assert all(position < len(d) for position, _ in completion.kept)


@pytest.mark.parametrize("form", ["off", "whole", "before"])
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_memories_equal_generate(backbone: str, form: str) -> None:
    model = tiny_model(backbone)
    memories = [model.read(torch.tensor([ids_of(n)]), compression=FORMS[form]) for n in (30, 45)]
    asked = [(memories[i % 2], ids_of(3 + i)) for i in range(5)]
    requests = [Request(memory=memory, question=q, options=GREEDY) for memory, q in asked]
    done = Engine(model, slots=2).run(requests)
    for (memory, question), completion in zip(asked, done, strict=True):
        assert completion.token_ids == generated(model, question, memory=memory)
        assert completion.prompt_tokens == int(memory.lengths[0]) + len(question)
    plain = Engine(model).run(
        [Request(memory=m, question=q, options=GREEDY, compression=False) for m, q in asked]
    )
    for (memory, question), completion in zip(asked, plain, strict=True):
        assert completion.token_ids == generated(model, question, memory=memory, compression=False)
        assert completion.kept is None


def test_a_document_of_several_questions_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    read, calls = entrance.read, []
    monkeypatch.setattr(entrance, "read", lambda *a: calls.append(1) or read(*a))
    document = " ".join([TEXT] * 3)
    requests = [
        Request(document=document, question=f"Question {i}?", options=GREEDY, compression=form)
        for i in range(6)
        for form in (FORMS["whole"], False)
    ]
    together = Engine(model, tiny_tokenizer(), slots=4).run(requests)
    assert len(calls) == 2
    for request, completion in zip(requests, together, strict=True):
        alone = Engine(model, tiny_tokenizer()).run([request])[0]
        assert completion.token_ids == alone.token_ids
        assert completion.prompt_tokens == alone.prompt_tokens
    assert sum(c.seconds["prefill"] > 0 for c in together) == len(together)
    assert len(calls) == 2


def test_slots_are_refilled_and_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), slots=3)
    rows, widths = engine._slots.rows, []
    draw = rows.draw
    monkeypatch.setattr(rows, "draw", lambda s: widths.append(len(s)) or draw(s))
    options = [SamplingOptions(max_new_tokens=n) for n in (2, 9, 4, 4, 3, 2, 5)]
    requests = [Request(prompt=ids_of(6, i), options=o) for i, o in enumerate(options)]
    done = engine.run(requests)
    assert [len(c.token_ids) for c in done] == [2, 9, 4, 4, 3, 2, 5]
    assert max(widths) == 3
    # each step draws for all three: 22 tokens are left after the prefills
    assert len(widths) <= 9


@pytest.mark.parametrize("piece_length", [1, 7, 1000])
def test_piece_length_changes_nothing(piece_length: int) -> None:
    model, request = tiny_model(), Request(prompt=ids_of(37), options=GREEDY)
    pieces = Engine(model, piece_length=piece_length).run([request])
    assert pieces[0].token_ids == Engine(model).run([request])[0].token_ids


@pytest.mark.parametrize("form", ["off", "random"])
def test_draws_do_not_depend_on_company(form: str) -> None:
    """Neither on the other requests, nor on their order, nor on the number of slots."""
    settings = {"off": False, "random": CompressionConfig(length=0.8, selector="random")}[form]
    model, tokenizer = tiny_model(), tiny_tokenizer()

    def request(seed: int) -> Request:
        options = SamplingOptions(max_new_tokens=12, temperature=0.9, top_p=0.9, seed=seed)
        return Request(prompt=ids_of(20 + seed), options=options, compression=settings)

    alone = [Engine(model, tokenizer).run([request(i)])[0] for i in range(4)]
    for slots in (1, 2, 8):
        together = Engine(model, tokenizer, slots=slots).run([request(i) for i in (3, 1, 0, 2)])
        for i, completion in zip((3, 1, 0, 2), together, strict=True):
            assert completion.token_ids == alone[i].token_ids
            assert completion.kept == alone[i].kept or form == "off"
    assert len({tuple(c.token_ids) for c in alone}) > 1


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_end_of_text(ignore_eos: bool) -> None:
    model, ids = tiny_model(), ids_of(11)
    free = generated(model, ids, 12, compression=False)
    eos = next(t for t in free[2:] if t not in free[:2])
    model.generation_config.eos_token_id = [eos, 339]
    options = SamplingOptions(max_new_tokens=12, ignore_eos=ignore_eos)
    (done,) = Engine(model, tiny_tokenizer()).run(
        [Request(prompt=ids, options=options, compression=False)]
    )
    if ignore_eos:
        assert (done.token_ids, done.finish_reason) == (free, "length")
    else:
        assert (
            done.token_ids
            == free[: free.index(eos) + 1]
            == generated(model, ids, 12, compression=False)
        )
        assert done.finish_reason == "eos"
        assert done.text == tiny_tokenizer().decode(done.token_ids[:-1], skip_special_tokens=True)


def test_streamed_pieces_make_the_text() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer())
    stream = engine.stream(Request(prompt="Tom Hill", options=DRAWN))
    assert stream.completion is None
    pieces = list(stream)
    assert isinstance(stream.completion, Completion)
    assert "".join(pieces) == stream.completion.text
    assert stream.completion.text == tiny_tokenizer().decode(
        stream.completion.token_ids, skip_special_tokens=True
    )
    heard: dict[int, str] = {0: "", 1: ""}

    def hear(number: int, text: str) -> None:
        heard[number] += text

    requests = [Request(prompt=p, options=DRAWN) for p in ("Tom Hill", "Helen")]
    done = engine.run(requests, on_text=hear)
    assert [heard[0], heard[1]] == [c.text for c in done]
    assert heard[0] == stream.completion.text


def test_stop_strings_end_the_text() -> None:
    """Each stop string lies across tokens; what was streamed never shows a part of it."""
    engine = Engine(tiny_model(), tiny_tokenizer())
    (free,) = engine.run([Request(prompt="Tom Hill", options=DRAWN)])
    tokens = [tiny_tokenizer().decode([t]) for t in free.token_ids]
    tried = 0
    for i in range(2, len(tokens) - 3):
        stop = "".join(tokens[i : i + 2])[1:]
        if "\ufffd" in "".join(tokens[i : i + 2]) or len(stop) < 2 or len(tokens[i]) < 2:
            continue
        options = SamplingOptions(**{**vars(DRAWN), "stop": (stop, "never there")})
        stream = engine.stream(Request(prompt="Tom Hill", options=options))
        pieces = list(stream)
        assert stream.completion is not None
        assert stream.completion.finish_reason == "stop"
        assert "".join(pieces) == stream.completion.text == free.text[: free.text.index(stop)]
        tried += 1
    assert tried >= 3


def test_bos_opens_prompts_and_documents_only() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, 0)]
    )
    engine = Engine(tiny_model(), tokenizer)
    for request in (Request(prompt="Tom"), Request(document="Tom", question=" lives")):
        job = engine.submit(request)
        assert (job.context or job.ids)[0] == 0
        assert (job.context + job.ids).count(0) == 1


def test_times_of_the_stages() -> None:
    engine = Engine(tiny_model())
    two, one = engine.run(
        [
            Request(prompt=ids_of(20), options=GREEDY, compression=FORMS["paper"]),
            Request(prompt=ids_of(20), options=GREEDY, compression=False),
        ]
    )
    assert set(two.seconds) == {"prefill", "stage1", "stage2", "decode"}
    assert two.seconds["stage1"] + two.seconds["stage2"] == pytest.approx(two.seconds["prefill"])
    assert set(one.seconds) == {"prefill", "decode"}
    assert all(value >= 0 for value in (*one.seconds.values(), *two.seconds.values()))


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        Engine(model).run([Request(prompt=ids_of(9), options=GREEDY)])


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite_while_decoding(value: float, static: bool) -> None:
    """The request whose logits break ends with the error; the one beside it goes on."""
    engine = Engine(tiny_model(), static=static)
    rows: Any = engine._slots.rows
    place, name = (rows.step, "_logits") if static else (rows, "logits")
    logits_of = getattr(place, name)

    def broken(*arguments: Any) -> torch.Tensor:
        logits = logits_of(*arguments)
        logits[0, 3 if value > 0 or value != value else slice(None)] = value
        return logits

    jobs = [engine.submit(Request(prompt=ids_of(9, i), options=GREEDY)) for i in range(2)]
    engine.step()
    setattr(place, name, broken)
    while not jobs[0].is_finished:
        engine.step()
    setattr(place, name, logits_of)
    while not all(job.is_finished for job in jobs):
        engine.step()
    with pytest.raises(InputError, match="not finite"):
        _ = jobs[0].completion
    alone = Engine(engine.model).run([Request(prompt=ids_of(9, 1), options=GREEDY)])[0]
    assert jobs[1].completion.token_ids == alone.token_ids


def test_one_bad_request_does_not_spoil_its_group() -> None:
    """before_question wants a question; the prompt beside it has none, and gets the error."""
    engine = Engine(tiny_model())
    good = engine.submit(Request(prompt=ids_of(9), options=GREEDY, compression=False))
    bad = engine.submit(Request(prompt=ids_of(9), options=GREEDY, compression=FORMS["before"]))
    while not (good.is_finished and bad.is_finished):
        engine.step()
    assert bad.error is not None
    assert len(good.completion.token_ids) == 7


def test_leaving_off_frees_the_slot() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=1)
    first = engine.stream(Request(prompt="Tom", options=DRAWN))
    next(first)
    second = engine.stream(Request(prompt="Helen", options=DRAWN))
    first.close()
    assert next(first, None) is None and first.completion.finish_reason == "cancelled"  # type: ignore[union-attr]
    assert "".join(second) == second.completion.text  # type: ignore[union-attr]
    third = engine.stream(Request(prompt="Tom", options=DRAWN))
    next(third)
    del third
    gc.collect()
    assert engine.step() == []


def test_a_request_that_fails_takes_the_others_out() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer())
    with pytest.raises(InputError, match="knows 0 to 339"):
        engine.run([Request(prompt="Tom", options=DRAWN), Request(prompt=[5, 340])])
    assert engine.step() == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "one of prompt, document and memory"),
        ({"prompt": "a", "document": "b"}, "one of prompt, document and memory"),
        ({"prompt": "a", "question": "b"}, "a question goes with a document"),
        ({"document": "a"}, "a question goes with a document"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"document": " \n", "question": "b"}, "the document is empty"),
        ({"document": "a", "question": "  "}, "the question is empty"),
        ({"prompt": [-1]}, "has token -1"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_read(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Engine(tiny_model(), tiny_tokenizer()).submit(Request(**parts))


def test_without_a_tokenizer() -> None:
    engine = Engine(tiny_model())
    (done,) = engine.run([Request(prompt=ids_of(5), options=GREEDY)])
    assert (done.text, len(done.token_ids)) == ("", 7)
    with pytest.raises(InputError, match="no tokenizer"):
        engine.submit(Request(prompt="Tom"))
    with pytest.raises(InputError, match="need a tokenizer"):
        engine.submit(Request(prompt=[1], options=SamplingOptions(stop=("x",))))
    with pytest.raises(InputError, match="slots = 0"):
        Engine(tiny_model(), slots=0)


def test_templates() -> None:
    assert fill_template("\nQ: {question} {x}\nA:", "{who}?") == "\nQ: {who}? {x}\nA:"
    with pytest.raises(InputError, match=r"lacks \{question\}"):
        fill_template("Q:", "who?")


@pytest.mark.parametrize("static", [False, True], ids=["compact", "static"])
def test_slots_keep_each_owner_its_states(static: bool) -> None:
    model = tiny_model()
    rows: Any = StaticRows(model, 3) if static else GrowingRows(model)
    slots: Slots[str] = Slots(3, rows)

    def states(*numbers: int) -> Any:
        cache = model.new_cache()
        ids = torch.tensor([ids_of(5, n) for n in numbers])
        model(ids, cache_params=cache, compression=False)
        return cache

    def held(owner: str) -> torch.Tensor:
        layer = rows.step.ssm[1] if static else rows.cache.ssm_states[1]
        return layer[slots.owners.index(owner)]

    with torch.inference_mode():
        slots.put(states(0, 1), ["a", "b"], [7, 8])
        slots.drop(["a", "nobody"])
        slots.put(states(2, 3), ["c", "d"], [9, 10])
        assert slots.free == 0
        for owner, number in (("b", 1), ("c", 2), ("d", 3)):
            torch.testing.assert_close(held(owner), states(number).ssm_states[1][0])
        tokens = rows.step.tokens.tolist() if static else rows._tokens
        assert dict(zip(slots.owners, tokens, strict=True)) == {"b": 8, "c": 9, "d": 10}
        slots.drop(["b", "c", "d"])
        assert slots.free == 3 and slots.owners == []


def test_the_next_step_begins_before_the_last_ones_tokens_are_read() -> None:
    """Draws, ends and refilled slots are those of a step at a time."""
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(0, 340, 9))

    def answers(static: bool) -> list[list[int]]:
        engine = Engine(model, slots=3, static=static)
        requests = [
            Request(
                prompt=ids_of(4 + i, i),
                options=SamplingOptions(
                    max_new_tokens=3 + 4 * (i % 4), temperature=0.9 * (i % 3), seed=i, top_k=i % 2
                ),
            )
            for i in range(9)
        ]
        return [completion.token_ids for completion in engine.run(requests)]

    together = answers(static=True)
    assert together == answers(static=False)
    ended = [t for t in together if t[-1] % 9 == 0]
    assert 0 < len(ended) < len(together)


def test_a_step_under_way_is_not_mixed_with_new_requests() -> None:
    """Its jobs are cancelled, their slots are filled anew: what it brings belongs to nobody."""
    engine = Engine(tiny_model(), slots=2, static=True)
    engine._plain.runs_ahead = True  # as on a GPU
    long = SamplingOptions(max_new_tokens=20)
    first = [engine.submit(Request(prompt=ids_of(5, i), options=long)) for i in range(2)]
    for _ in range(3):
        engine.step()
    assert engine._ahead is not None
    engine.cancel(first[0])
    second = engine.submit(Request(prompt=ids_of(6), options=GREEDY))
    engine.step()
    engine.cancel(first[1])
    while not second.is_finished:
        assert engine.step() != []
    alone = Engine(engine.model).run([Request(prompt=ids_of(6), options=GREEDY)])[0]
    assert second.completion.token_ids == alone.token_ids
    assert first[0].finish_reason == first[1].finish_reason == "cancelled"
    engine.cancel(*first)
    (third,) = engine.run([Request(prompt=ids_of(6), options=GREEDY)])
    assert third.token_ids == alone.token_ids
