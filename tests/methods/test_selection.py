"""Span, K, selection, splice and the score's gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from remamba import CompressionConfig, Span
from remamba.execution.steps import finish
from remamba.methods import selection as compression
from remamba.methods.selection import Compressor, importance, num_kept, span_bounds
from remamba.methods.splice import plan_adaption, plan_splice, splice


def bounds(length, config, limit=None):
    lengths = torch.tensor([length])
    span = span_bounds(lengths, lengths - 1 if limit is None else torch.tensor([limit]), config)
    return int(span.start), int(span.stop), int(num_kept(span, config))


def test_figure_2_of_the_paper():
    assert bounds(10, CompressionConfig(start=0.2, length=0.4, keep_ratio=0.5)) == (2, 6, 2)


@pytest.mark.parametrize(
    ("length", "p", "rho", "m", "k"),
    [(5500, 0.18, 0.009, 990, 9), (5500, 0.25, 0.05, 1375, 69), (5500, 0.2, 0.05, 1100, 55)],
)
def test_sizes_at_the_published_settings(length, p, rho, m, k):
    assert bounds(length, CompressionConfig(length=p, keep_ratio=rho)) == (0, m, k)


def test_float_noise_does_not_round_up():
    assert math.ceil(0.07 * 100) == 8
    assert bounds(100, CompressionConfig(length=0.07, keep_ratio=1.0)) == (0, 7, 7)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.9])
def test_the_last_token_is_never_compressed(length, start):
    config = CompressionConfig(start=start, length=round(1 - start, 3), keep_ratio=0.5)
    first, stop, kept = bounds(length, config)
    assert 0 <= first <= stop <= max(length - 1, first)
    assert kept == math.ceil(0.5 * (stop - first))


def test_question_apart_leaves_the_whole_document_to_the_span():
    assert bounds(8, CompressionConfig(length=1.0, keep_ratio=0.25), limit=8) == (0, 8, 2)


def test_absolute_budget():
    assert bounds(40, CompressionConfig(length=0.5, num_kept=7)) == (0, 20, 7)
    assert bounds(40, CompressionConfig(length=0.1, num_kept=7)) == (0, 4, 4)


@pytest.fixture
def compressor():
    return Compressor(8)


def spans(*lengths):
    return Span(torch.zeros(len(lengths), dtype=torch.long), torch.tensor(lengths))


def test_scores_are_cosines_of_key_and_query(compressor):
    hidden, last = torch.randn(2, 5, 8), torch.randn(4, 8)
    scores = finish(compressor.scores(hidden, last))
    for row in range(4):
        keys = compressor.key_proj(hidden[row // 2])
        query = compressor.query_proj(last[row])
        expected = F.cosine_similarity(keys, query[None], dim=-1)
        torch.testing.assert_close(scores[row], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cosines_are_float32_whatever_the_keys_are(compressor, dtype, assert_close):
    compressor.to(dtype)
    hidden, last = torch.randn(2, 21, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    keys, query = compressor.key_proj(hidden).double(), compressor.query_proj(last).double()
    expected = F.cosine_similarity(keys.repeat_interleave(2, 0), query[:, None], dim=-1)
    scores = finish(compressor.scores(hidden, last))
    assert scores.dtype == torch.float32
    assert_close(scores, expected.float())


def test_scores_come_in_blocks_without_gradients(compressor, monkeypatch, assert_close):
    hidden, last = torch.randn(2, 21, 8), torch.randn(4, 8)
    whole = finish(compressor.scores(hidden, last))
    monkeypatch.setattr(compression, "SCORED_AT_ONCE", 4)
    sizes = []
    compressor.key_proj.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    with torch.no_grad():
        assert_close(finish(compressor.scores(hidden, last)), whole)
    assert sizes == [4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("selector", ["topk", "random", "fixed"])
def test_kept_positions_are_distinct_ascending_and_inside(compressor, selector):
    config = CompressionConfig(length=1.0, keep_ratio=0.3, selector=selector)
    span = Span(torch.tensor([2, 0]), torch.tensor([13, 4]))
    hidden = torch.randn(2, 11, 8)
    scores = finish(compressor.scores(hidden, torch.randn(2, 8)))
    kept = compressor.keep(hidden, scores, span, config)
    assert kept.lengths.tolist() == [4, 2]
    for row, count in enumerate(kept.lengths.tolist()):
        index = kept.index[row, :count].tolist()
        assert index == sorted(set(index))
        assert span.start[row] <= index[0] and index[-1] < span.stop[row]
        for position, score, value in zip(index, kept.scores[row], kept.values[row], strict=False):
            local = position - int(span.start[row])
            assert score == scores[row, local]
            torch.testing.assert_close(value, compressor.value_proj(hidden[row, local]))
    if selector == "topk":
        best = scores[0].topk(4).indices.sort().values + 2
        assert kept.index[0].tolist() == best.tolist()
    if selector == "fixed":
        assert kept.index[0].tolist() == [4, 7, 10, 12]


def test_multiplicative_values_are_scaled_by_alpha(compressor):
    hidden, last = torch.randn(1, 6, 8), torch.randn(1, 8)
    scores = finish(compressor.scores(hidden, last))
    config = CompressionConfig(length=1.0, keep_ratio=0.5)
    plain = compressor.keep(hidden, scores, spans(6), config)
    scaled = compressor.keep(hidden, scores, spans(6), config.replace(adaption="multiplicative"))
    expected = plain.values * plain.scores.relu().unsqueeze(-1)
    torch.testing.assert_close(scaled.values, expected)


def test_a_window_brings_the_tokens_before_the_one_found(compressor):
    span = Span(torch.tensor([2, 0]), torch.tensor([12, 4]))
    hidden = torch.randn(2, 10, 8)
    scores = torch.full((2, 10), 0.1)
    scores[0, 6], scores[0, 1] = 0.9, 0.8  # the first has but one position before it
    scores[1, 3], scores[1, 7] = 0.5, 1.0  # the second lies behind the row's end
    config = CompressionConfig(length=1.0, num_kept=5, window=3)
    kept = compressor.keep(hidden, scores, span, config)
    assert kept.index.tolist() == [[2, 3, 6, 7, 8], [0, 1, 2, 3, 0]]
    expected = torch.tensor([0.8 - 1e-6, 0.8, 0.9 - 2e-6, 0.9 - 1e-6, 0.9])
    torch.testing.assert_close(kept.scores[0], expected, rtol=0, atol=1e-7)
    assert kept.scores[0].argsort().tolist() == [0, 1, 2, 3, 4]  # the tokens found score best
    torch.testing.assert_close(kept.scores[1, :4], torch.tensor([0.1, 0.5, 0.5, 0.5]))
    cut = compressor.keep(hidden, scores, span, config.replace(num_kept=2))
    assert cut.index.tolist() == [[7, 8], [2, 3]]  # a window cut short keeps what stands next to it
    for name in ("random", "fixed"):
        torch.manual_seed(0)
        alone = compressor.keep(hidden, scores, span, config.replace(selector=name, window=1))
        torch.manual_seed(0)
        wide = compressor.keep(hidden, scores, span, config.replace(selector=name))
        assert torch.equal(alone.index, wide.index) and torch.equal(alone.scores, wide.scores)


@pytest.mark.parametrize("adaption", ["none", "multiplicative"])
def test_the_residual_value_adds_the_embedding_of_its_own_token(compressor, adaption):
    span = Span(torch.tensor([1, 0]), torch.tensor([6, 3]))
    hidden, embeds = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    scores = finish(compressor.scores(hidden, torch.randn(4, 8)))  # two questions a document
    config = CompressionConfig(length=1.0, keep_ratio=0.5, adaption=adaption)
    rows = embeds.repeat_interleave(2, 0)

    def embeddings(index):
        return rows.gather(1, index[..., None].expand(-1, -1, 8))

    plain = compressor.keep(hidden, scores, span, config)
    kept = compressor.keep(hidden, scores, span, config.replace(value="residual"), embeddings)
    assert torch.equal(kept.index, plain.index) and kept.lengths.tolist() == [3, 3, 2, 2]
    alpha = kept.scores.relu() if adaption == "multiplicative" else torch.ones_like(kept.scores)
    for row, count in enumerate(kept.lengths.tolist()):
        for i in range(count):
            own = rows[row, kept.index[row, i]] * alpha[row, i]
            torch.testing.assert_close(kept.values[row, i], plain.values[row, i] + own)


def test_gradient_into_the_scores():
    scores = torch.tensor([0.8, 0.1, -0.4], requires_grad=True)
    alpha = importance(scores[None], torch.tensor([3]), CompressionConfig())
    assert alpha[0].tolist() == pytest.approx([0.8, 0.1, 0.0])
    alpha.backward(torch.tensor([[1.0, 2.0, 3.0]]))
    assert scores.grad.tolist() == pytest.approx([0.8, 0.2, 0.0])  # times alpha


def test_relative_importance_is_a_softmax_over_its_best():
    scores = torch.tensor([[0.3, 0.5, 0.4], [-0.2, 0.9, 0.9], [0.1, 0.2, 0.3]])
    lengths = torch.tensor([3, 1, 0])  # a pad counts neither as the best nor at all
    alpha = importance(scores, lengths, CompressionConfig(importance="relative"))
    weights = (16 * scores[0]).softmax(dim=0)
    torch.testing.assert_close(alpha[0], weights / weights.max())
    assert alpha[1, 0] == 1 and bool(alpha.isfinite().all())
    assert importance(scores[:, :0], lengths, CompressionConfig(importance="relative")).numel() == 0


def test_splice_of_unequal_rows():
    embeds = torch.arange(2 * 6).view(2, 6, 1).float()
    kept_values = torch.tensor([[[-1.0], [-2.0]], [[-3.0], [0.0]]])
    plan = plan_splice(
        torch.tensor([6, 5]), torch.tensor([1, 0]), torch.tensor([3, 2]), torch.tensor([2, 1])
    )
    taken = embeds.gather(1, plan.index.unsqueeze(-1))
    from remamba import Kept

    kept = Kept(torch.zeros(2, 2).long(), torch.tensor([[0.5, -0.2], [0.9, 0.0]]), kept_values,
                torch.tensor([2, 1]))  # fmt: skip
    out = splice(taken.clone(), plan, kept)[..., 0]
    with torch.no_grad():
        assert torch.equal(splice(taken.clone(), plan, kept)[..., 0], out)
        pieces = [splice(taken[:, i : i + 2].clone(), plan, kept, i) for i in (0, 2, 4)]
        assert torch.equal(torch.cat(pieces, dim=1)[..., 0], out)
    assert plan.lengths.tolist() == [5, 4]
    assert out[0].tolist() == [0.0, -1.0, -2.0, 4.0, 5.0]
    assert out[1, :4].tolist() == [-3.0, 8.0, 9.0, 10.0]
    adaption = plan_adaption(plan, kept, CompressionConfig())
    assert adaption.alpha[0].tolist() == pytest.approx([1.0, 0.5, 0.0, 1.0, 1.0])
    assert adaption.selected[1].tolist() == [True, False, False, False, False]
    assert plan_adaption(plan, kept, CompressionConfig(adaption="none")) is None
