"""The exactness matrix: what must be equal, measured. `python -m tests.exactness` prints it.

A cell is a function of a backbone type that returns an error: the largest difference relative to
the largest expected value, in float32. Greedy tokens that differ count as 1.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from remamba import CompressionConfig, DocumentMemory, ReMambaConfig, ReMambaForCausalLM, StateCache
from remamba.methods.reference import two_stages
from remamba.methods.shorten import Last
from remamba.ops import selective_scan, ssd
from remamba.ops.scan.op import selective_scan_ref
from remamba.ops.ssd_scan.op import ssd_ref
from tests.rules import Pairs, decoded_and_parallel, parts_and_whole

BACKBONES = ("mamba", "mamba2", "falcon_mamba")
BOUND = 1e-5
VOCAB = 61
FORMS = {
    "paper": CompressionConfig(start=0.1, length=0.5, keep_ratio=0.3),
    "exact": CompressionConfig(
        length=0.5, keep_ratio=0.3, adaption="exact", importance="relative", window=3
    ),
    "append": CompressionConfig(length=0.5, keep_ratio=0.3, placement="append"),
    "whole": CompressionConfig(length=1.0, keep_ratio=0.3, adaption="multiplicative"),
    "before": CompressionConfig(
        length=1.0, keep_ratio=0.3, placement="before_question", value="residual"
    ),
}
OPTIONS = [
    CompressionConfig(start=start, length=length, keep_ratio=0.3, **options)
    for start, length in ((0.1, 0.5), (0.0, 1.0))
    for options in (
        *({"placement": x} for x in ("replace", "append", "before_question")),
        *({"adaption": x} for x in ("exact", "multiplicative", "none")),
        *({"selector": "fixed", "adaption": x} for x in ("selective", "exact")),
        *({"importance": "relative", "adaption": x} for x in ("selective", "multiplicative")),
        *({"value": "residual", "placement": x} for x in ("replace", "append", "before_question")),
        *({"window": x, "adaption": "exact"} for x in (2, 5, 40)),
    )
]
"""One or two options changed at a time, over a part of the prompt and over all of it."""


def tiny_model(backbone: str, **changes: object) -> ReMambaForCausalLM:
    """A random model of two layers with Theta and the convolution's bias away from zero."""
    torch.manual_seed(3)
    config = ReMambaConfig(
        backbone_type=backbone,
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=2,
        state_size=8,
        head_dim=12,
        n_groups=2,
        chunk_size=16,
        **changes,
    )
    model = ReMambaForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.adaption.theta.normal_(std=0.3)
            block.mixer.conv1d.bias.normal_(std=0.3)
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def questions(form: str, *lengths: int) -> dict[str, Tensor]:
    """question_lengths for the forms that need a question."""
    return {"question_lengths": torch.tensor(lengths)} if form in ("whole", "before") else {}


def kernel_equals_reference(backbone: str) -> float:
    """Outputs, states and every gradient of the fast scan, at odd lengths and with unequal rows.

    Outputs and states also where nothing is recorded, which another form may compute.
    """
    worst = 0.0
    for length in (1, 2, 63, 100):
        torch.manual_seed(length)
        b, e, n, h, p, g = 2, 12, 8, 4, 3, 2
        common = {
            "dt_scale": torch.rand(b, length),
            "lengths": torch.tensor([length, max(1, length // 2)]),
        }
        if backbone == "mamba2":
            fast, slow = ssd, ssd_ref
            named = {
                "x": torch.randn(b, length, h, p), "dt": torch.randn(b, length, h),
                "A": -torch.rand(h), "B": torch.randn(b, length, g, n),
                "C": torch.randn(b, length, g, n), "D": torch.randn(h),
                "dt_bias": torch.randn(h), "initial_state": torch.randn(b, h, p, n),
            }  # fmt: skip
        else:
            fast, slow = selective_scan, selective_scan_ref
            named = {
                "x": torch.randn(b, length, e), "dt": torch.randn(b, length, e),
                "A": -torch.rand(e, n), "B": torch.randn(b, length, n),
                "C": torch.randn(b, length, n), "D": torch.randn(e),
                "z": torch.randn(b, length, e), "initial_state": torch.randn(b, e, n),
            }  # fmt: skip
        real = torch.arange(length) < common["lengths"][:, None]
        results = []
        for function in (fast, slow):
            inputs = {name: value.clone().requires_grad_() for name, value in named.items()}
            y, state = function(**inputs, **common)
            y = y * real.view(b, length, *[1] * (y.dim() - 2))
            loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.square().sum()
            loss.backward()
            results.append([y, state, *(value.grad for value in inputs.values())])
        with torch.no_grad():
            y, state = fast(**named, **common)
            y = y * real.view(b, length, *[1] * (y.dim() - 2))
        worst = max(worst, *map(error, *results), *map(error, (y, state), results[1]))
    return worst


def mixers_equal_transformers(backbone: str) -> float:
    """Logits of transformers' own model on the same weights, with left padding too."""
    import transformers

    shape = {
        "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 8,
    }  # fmt: skip
    if backbone == "mamba2":
        config = transformers.Mamba2Config(
            **shape, num_heads=4, head_dim=12, n_groups=2, chunk_size=16, tie_word_embeddings=True
        )
        theirs = transformers.Mamba2ForCausalLM(config)
    elif backbone == "mamba":
        theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**shape))
    else:
        theirs = transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**shape))
    ours = tiny_model(backbone, layer_norm_epsilon=theirs.config.layer_norm_epsilon)
    own = {k: v for k, v in ours.state_dict().items() if "adaption" not in k and "compr" not in k}
    theirs.load_state_dict(own, strict=False)
    theirs.eval()
    ids = tokens(2, 37)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits
        found = ours(ids, attention_mask=mask, compression=False).logits
    return max(error(found[0], expected[0]), error(found[1, 9:], expected[1, 9:]))


def off_equals_plain(backbone: str) -> float:
    """compression=False and the method `plain` are one pass of the backbone."""
    model, ids = tiny_model(backbone), tokens(2, 30)
    expected = model.lm_head(model.backbone(model.backbone.embeddings(ids)))
    ways = ({"compression": False}, {"method": "plain"}, {"method": Last(tokens=30)})
    return max(error(model(ids, **way).logits, expected) for way in ways)


def two_stages_equal_reference(backbone: str) -> float:
    """Every option: logits, labels, kept positions of a row, as `methods/reference.py` has them."""
    model, worst = tiny_model(backbone), 0.0
    ids = tokens(31)
    labels = torch.where(torch.arange(31) < 25, -100, ids)
    for settings in OPTIONS:
        question = 5 if settings.placement == "before_question" else 0
        expected = two_stages(model, ids, settings, 25, question, labels)
        out = model(
            ids[None],
            labels=labels[None],
            prompt_lengths=torch.tensor([25]),
            question_lengths=torch.tensor([question]),
            compression=settings,
        )
        if [position for position, _ in out.kept.rows()[0]] != expected.kept:
            return 1.0
        n = out.logits.shape[1]
        if out.labels[0].tolist() != expected.labels[-n:].tolist():
            return 1.0
        worst = max(worst, error(out.logits[0], expected.logits[-n:]))
    return worst


def batch_equals_single(backbone: str) -> float:
    """Unequal prompts in a batch, each with its own span and K, as each alone."""
    model, worst = tiny_model(backbone), 0.0
    rows = [tokens(1, length, seed=length) for length in (33, 20, 41)]
    ids = torch.zeros(3, 41, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row[0], 1
    for form, compression in FORMS.items():
        out = model(ids, mask, compression=compression, **questions(form, 5, 3, 7))
        for i, row in enumerate(rows):
            alone = model(row, compression=compression, **questions(form, (5, 3, 7)[i]))
            length = alone.logits.shape[1]
            worst = max(worst, error(out.logits[i, :length], alone.logits[0]))
            kept = int(out.kept.lengths[i])
            if out.kept.index[i, :kept].tolist() != alone.kept.index[0].tolist():
                return 1.0
    return worst


def left_equals_right(backbone: str) -> float:
    """Left-padded rows as right-padded ones: logits, kept positions and generated tokens."""
    model, worst = tiny_model(backbone), 0.0
    ids, lengths = tokens(2, 30), torch.tensor([30, 19])
    right = (torch.arange(30) < lengths[:, None]).long()
    left = right.flip(1)
    left_ids = torch.stack([ids[i].roll(30 - int(lengths[i])) for i in range(2)])
    for form, compression in FORMS.items():
        options = {"compression": compression, **questions(form, 4, 6)}
        a, b = model(ids, right, **options), model(left_ids, left, **options)
        for i in range(2):
            n = model(ids[i : i + 1, : lengths[i]], compression=compression,
                      **questions(form, (4, 6)[i])).logits.shape[1]  # fmt: skip
            worst = max(worst, error(b.logits[i, -n:], a.logits[i, :n]))
        if not torch.equal(a.kept.index, b.kept.index):
            return 1.0
        steps = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        one = model.generate(ids, attention_mask=right, **steps, **options)
        two = model.generate(left_ids, attention_mask=left, **steps, **options)
        if not torch.equal(one[:, -5:], two[:, -5:]):
            return 1.0
    return worst


def pieces_equal_whole(backbone: str) -> float:
    """Both stages read in pieces of any size, as read whole."""
    model, worst = tiny_model(backbone), 0.0
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[1, 23:] = 0
    for (form, compression), piece in itertools.product(FORMS.items(), (1, 7, 16)):
        options = {"compression": compression, **questions(form, 5, 3)}
        whole = model(ids, mask, logits_to_keep=6, **options)
        pieces = model(ids, mask, logits_to_keep=6, piece_length=piece, **options)
        worst = max(worst, error(pieces.logits, whole.logits))
        every = model(ids, mask, piece_length=piece, **options).logits
        worst = max(worst, error(every[0, -6:], whole.logits[0]))
        worst = max(worst, error(pieces.kept.scores, whole.kept.scores))
        for a, b in zip(pieces.cache_params.ssm_states, whole.cache_params.ssm_states, strict=True):
            worst = max(worst, error(a, b))
    return worst


def decode_equals_parallel(backbone: str) -> float:
    """Token by token along forced tokens, as one forward over prompt and answer."""
    model, worst = tiny_model(backbone), 0.0
    ids = tokens(2, 40)
    for form, compression in FORMS.items():
        options = {"compression": compression, **questions(form, 5, 5)}
        whole = model(ids, prompt_lengths=torch.tensor([30, 30]), **options)
        out = model(ids[:, :30], **options)
        steps = []
        for i in range(30, 40):
            step = model(ids[:, i : i + 1], cache_params=out.cache_params)
            steps.append(step.logits)
        worst = max(worst, error(torch.cat(steps, 1), whole.logits[:, -10:]))
    return worst


def saved_equals_kept(backbone: str) -> float:
    """A state and a document memory written to files and loaded, as never written."""
    model, ids = tiny_model(backbone), tokens(2, 20)
    out = model(ids, compression=False)
    memory = model.read(ids, compression=FORMS["before"])
    with tempfile.TemporaryDirectory() as folder:
        out.cache_params.save(Path(folder) / "state.safetensors")
        cache = StateCache.load(Path(folder) / "state.safetensors")
        memory.save(Path(folder) / "memory.safetensors")
        loaded = DocumentMemory.load(Path(folder) / "memory.safetensors")
    more = tokens(2, 5, seed=1)
    state = error(
        model(more, cache_params=cache).logits, model(more, cache_params=out.cache_params).logits
    )
    return max(state, error(model(more, memory=loaded).logits, model(more, memory=memory).logits))


def memory_equals_unsplit(backbone: str) -> float:
    """A document read once and asked three questions, as three prompts of document and question."""
    model, worst = tiny_model(backbone), 0.0
    documents, asked = tokens(2, 30), tokens(6, 6, seed=1)
    unsplit = torch.cat([documents.repeat_interleave(3, 0), asked], 1)
    lengths = torch.full((6,), 6)
    for form in ("whole", "before"):
        memory = model.read(documents, compression=FORMS[form])
        found = model(asked, memory=memory)
        expected = model(unsplit, question_lengths=lengths, compression=FORMS[form])
        worst = max(worst, error(found.logits, expected.logits))
        if not torch.equal(found.kept.index, expected.kept.index):
            return 1.0
    # the vectors before the question, computed the long way: document, vectors, question at once
    embed = model.backbone.embeddings
    values = found.kept.values
    long_way = torch.cat([embed(unsplit[:, :30]), values, embed(asked)], 1)
    alpha = torch.relu(found.kept.scores)
    ones = torch.ones(6, 30), torch.ones(6, 6)
    from remamba.model.time_step import Adaption

    adaption = Adaption(
        torch.cat([ones[0], alpha, ones[1]], 1),
        torch.cat([ones[0] == 0, alpha >= 0, ones[1] == 0], 1),
        False,
    )
    hidden = model.backbone(long_way, None, adaption)
    expected = model.lm_head(hidden[:, 30:])
    return max(worst, error(found.logits, expected))


def neutral_splice_equals_plain(backbone: str) -> float:
    """Everything kept, Value the identity on embeddings, alpha 1, Theta 0: plain Mamba again."""
    from remamba.methods.selection import Kept
    from remamba.methods.splice import plan_adaption, plan_splice, splice
    from remamba.model.rows import enter

    model, ids = tiny_model(backbone), tokens(2, 30)
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.adaption.theta.zero_()
    embeds = model.backbone.embeddings(ids)
    index = torch.arange(3, 12).expand(2, -1)
    kept = Kept(index, torch.ones(2, 9), embeds[:, 3:12], torch.tensor([9, 9]))
    plan = plan_splice(
        torch.tensor([30, 30]), torch.tensor([3, 3]), torch.tensor([9, 9]), kept.lengths
    )
    spliced = splice(enter(ids).take(model.backbone.embeddings, plan.index), plan, kept)
    adaption = plan_adaption(plan, kept, CompressionConfig())
    return error(model.backbone(spliced, None, adaption), model.backbone(embeds))


def generate_equals_forward(backbone: str) -> float:
    """Greedy generation, as the argmax of forwards over ever longer rows; beams of one likewise."""
    model, ids = tiny_model(backbone), tokens(2, 25)
    steps = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for form, compression in {**FORMS, "off": False}.items():
        options = {"compression": compression, **questions(form, 5, 5)}
        found = model.generate(ids, **steps, **options)
        row, prompt = ids, torch.tensor([25, 25])
        for _ in range(6):
            logits = model(row, prompt_lengths=prompt, **options).logits
            row = torch.cat([row, logits[:, -1:].argmax(-1)], 1)
        if not torch.equal(found, row):
            return 1.0
    return 0.0


def engine_equals_generate(backbone: str) -> float:
    """The engine's greedy tokens for unequal prompts in fewer slots, as generate's one by one.

    With states that grow and shrink, and with states in place.
    """
    from remamba.engine.engine import Engine, Request, SamplingOptions

    model = tiny_model(backbone, eos_token_id=None)
    greedy = SamplingOptions(max_new_tokens=6)
    prompts = [tokens(1, length, seed=length) for length in (9, 30, 17)]
    for compression, static in itertools.product((False, FORMS["paper"]), (False, True)):
        engine = Engine(model, None, slots=2, static=static)
        requests = [
            Request(prompt=row[0].tolist(), options=greedy, compression=compression)
            for row in prompts
        ]
        for row, completion in zip(prompts, engine.run(requests), strict=True):
            expected = model.generate(
                row, max_new_tokens=6, do_sample=False, pad_token_id=0, compression=compression
            )
            if completion.token_ids != expected[0, row.shape[1] :].tolist():
                return 1.0
    return 0.0


def by_rule(pairs: Callable[[ReMambaForCausalLM, Path], Pairs]) -> Callable[[str], float]:
    """A cell of what must be equal under every layer rule."""

    def cell(backbone: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            found = pairs(tiny_model(backbone), Path(folder))
            return max(itertools.starmap(error, found))

    return cell


CELLS: dict[str, Callable[[str], float]] = {
    "kernel = reference": kernel_equals_reference,
    "mixers = transformers' mixers": mixers_equal_transformers,
    "two stages = methods/reference.py": two_stages_equal_reference,
    "compression off = plain Mamba": off_equals_plain,
    "neutral splice = plain Mamba": neutral_splice_equals_plain,
    "batch = each alone": batch_equals_single,
    "left-padded = right-padded": left_equals_right,
    "prefill in pieces = whole": pieces_equal_whole,
    "forced decoding = parallel forward": decode_equals_parallel,
    "saved and loaded = never saved": saved_equals_kept,
    "document memory = unsplit prompt": memory_equals_unsplit,
    "generate = argmax of forwards": generate_equals_forward,
    "layer rule: decoding = parallel forward": by_rule(decoded_and_parallel),
    "layer rule: pieces = whole, batch = alone": by_rule(parts_and_whole),
    "engine = generate": engine_equals_generate,
}


def main() -> int:
    """Print the matrix; 1 when a cell is above its bound."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Exactness: largest relative error, float32, bound {BOUND:g}")
    table.add_column("must be equal")
    for backbone in BACKBONES:
        table.add_column(backbone, justify="right")
    failed = 0
    for name, cell in CELLS.items():
        with torch.set_grad_enabled(cell is kernel_equals_reference):
            errors = [cell(backbone) for backbone in BACKBONES]
        failed += sum(not e < BOUND for e in errors)
        table.add_row(name, *(f"{e:.1e}" if e < BOUND else f"[red]{e:.1e}[/]" for e in errors))
    console = Console(width=100)
    console.print(table)
    console.print(f"{failed} cells above the bound" if failed else "every cell is within its bound")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
