"""The tables of filter and scale: made as the papers say, bound to a model, checked when loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remamba import InputError, ReMambaForCausalLM
from remamba.methods.calibration import filter_table, scale_table, thresholds_of, windows_of
from remamba.methods.filter import Filter
from remamba.methods.rule_table import RuleTable, load_table
from remamba.methods.scale import Scale
from tests.exactness import BACKBONES, tiny_model, tokens

SCALE = {"of": "steps", "factors": [0.5, 2.0]}


def filter_values(**changes: Any) -> dict[str, Any]:
    layer = {"channels": [1], "thresholds": [[0.25], [0.5]]}
    values = {"lengths": [6, 8], "from_tokens": 6, "channels": 48, "layers": [layer, layer]}
    return {**values, **changes}


def test_a_threshold_by_hand() -> None:
    """Steps 4, 2, 0 (sum 6) stretched to 5 points are 4, 3, 2, 1, 0: their sum is above 6 from the
    second on, k = 1, so that theta is the third. To 9 points: 4, 3.5 ... 0, above 6 from the
    second on too."""
    steps = torch.tensor([[4.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert thresholds_of(steps, 5) == [2.0, 0.0]
    assert thresholds_of(steps, 9) == [3.0, 0.0]


def test_what_is_above_a_threshold_sums_up_to_the_trained_budget() -> None:
    """The purpose of it all, on the curve itself: the budget is passed by one step at most."""
    torch.manual_seed(0)
    steps = torch.rand(50, 3).sort(dim=0, descending=True).values
    for length in (75, 200, 1000):
        theta = torch.tensor(thresholds_of(steps, length))
        part = torch.nn.functional.interpolate(
            steps.t()[None], size=length, mode="linear", align_corners=True
        )[0]
        kept = part.masked_fill(part <= theta[:, None], 0).sum(dim=1)
        budget = steps.sum(dim=0)
        assert bool((kept > budget).all()) and bool((kept - part[:, 0] <= budget).all())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_filter_table_is_that_of_the_steps_and_decays(backbone: str) -> None:
    """Computed the long way, for windows of 12 tokens whose largest step counts as the second."""
    model, windows = tiny_model(backbone), tokens(2, 12)
    table = filter_table(model, windows, clip=0.17, decay=0.4)
    block, embeds = model.backbone.layers[0], model.backbone.embeddings(windows)
    mixer = block.mixer
    with torch.no_grad():
        normed = block.norm(embeds)[0]
        if backbone == "mamba2":
            dt = mixer.in_proj(normed).split(mixer.projected_sizes, dim=-1)[2] + mixer.dt_bias
            slowest = -mixer.A_log.exp()
        else:
            x, _ = mixer.conv1d(mixer.in_proj(normed).chunk(2, dim=-1)[0], None, None)
            low = mixer.x_proj(x)[..., : mixer.sizes[0]]
            if mixer.norm_eps is not None:
                low = low * (low.square().mean(-1, keepdim=True) + mixer.norm_eps).rsqrt()
            dt = mixer.dt_proj(low)
            slowest = -mixer.A_log.exp().min(dim=1).values
        delta = torch.nn.functional.softplus(dt).sort(dim=1, descending=True).values
        delta[:, 0] = delta[:, 1]  # int(0.17 * 12) = 2 steps count as the least of them
        decay = torch.exp(slowest * delta.sum(dim=1)).mean(dim=0)
        curve = delta.mean(dim=0)
    channels = (decay > 0.4).nonzero()[:, 0].tolist()
    layer = table.values["layers"][0]
    assert layer["channels"] == channels and len(channels) > 0
    assert table.values["lengths"][:3] == [18, 24, 30] and table.values["from_tokens"] == 18
    for length, found in zip(table.values["lengths"][:3], layer["thresholds"], strict=False):
        expected = thresholds_of(curve[:, channels], length)
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-7
        )
    whole = filter_table(model, windows, clip=0, decay=0).values["layers"][0]
    assert len(whole["channels"]) == curve.shape[1]


@pytest.mark.parametrize("of", ["steps", "A", "A_log"])
@torch.no_grad()
def test_a_scale_table_is_the_best_of_what_was_tried(of: str, tmp_path: Path) -> None:
    model, windows = tiny_model("mamba"), tokens(2, 17)
    table = scale_table(model, windows, of=of, steps=3)
    again = scale_table(model, windows, of=of, steps=3)
    assert table == again
    factors = table.values["factors"]
    assert table.values["of"] == of and len(factors) == 2
    assert table.made["readings"] == 9 + 3 * 3

    def perplexity(method: Any) -> float:
        out = [model(row[None], labels=row[None], method=method).loss for row in windows]
        return float(torch.stack(out).mean().exp())

    told = table.made["perplexity"]
    assert told["plain"] == pytest.approx(perplexity("plain"), rel=1e-5)
    assert told["scaled"] <= told["plain"]
    table.save(tmp_path / "scale.json")
    method = Scale(str(tmp_path / "scale.json"))
    assert told["scaled"] == pytest.approx(perplexity(method), rel=1e-5)


def test_windows_come_evenly_from_enough_texts() -> None:
    texts = [list(range(25)), list(range(100, 103)), list(range(200, 230)), list(range(300, 400))]
    looked_at: list[int] = []

    def told() -> Any:
        for number, text in enumerate(texts):
            looked_at.append(number)
            yield text

    found = windows_of(told(), 10, 1)
    assert found.tolist() == [list(range(10))]
    assert looked_at == [0, 1, 2], "five windows of ten tokens are enough for one"
    starts = windows_of(texts, 10, 3)[:, 0].tolist()
    assert starts == [0, 300, 350]
    assert len(windows_of(texts, 10, 99)) == 2 + 3 + 10
    with pytest.raises(InputError, match="the longest has 100"):
        windows_of(texts, 101, 1)


def saved(folder: Path, model: ReMambaForCausalLM, method: str, values: dict[str, Any]) -> str:
    from remamba.pretrained import fingerprint

    path = folder / f"{method}.json"
    RuleTable(method, fingerprint(model), values).save(path)
    return str(path)


def test_a_table_survives_its_file_and_is_known_by_its_values(tmp_path: Path) -> None:
    model, ids = tiny_model("mamba"), tokens(1, 9)
    path = saved(tmp_path, model, "scale", SCALE)
    table, method = load_table(path), Scale(path)
    assert table.values == SCALE and method.digest == table.digest
    (tmp_path / "elsewhere.json").write_bytes(Path(path).read_bytes())
    assert Scale(str(tmp_path / "elsewhere.json")) == method
    with torch.no_grad():
        expected = model(ids, method=method).logits
        memory = model.read(ids, method=method)
        memory.save(tmp_path / "memory")
        Path(path).unlink()
        # the states know their factors: the table is needed for reading alone
        loaded = model.load_memory(tmp_path / "memory")
        asked = tokens(1, 4, seed=2)
        torch.testing.assert_close(
            model(asked, memory=loaded).logits, model(asked, memory=memory).logits
        )
        with pytest.raises(InputError, match=r"the rule .*scale.json cannot be read"):
            model(ids, method=loaded.method)
        saved(tmp_path, model, "scale", {**SCALE, "factors": [1.0, 3.0]})
        with pytest.raises(InputError, match="no longer the one that was meant"):
            model(ids, method=loaded.method)
        assert float((model(ids, method=Scale(path)).logits - expected).abs().max()) > 0


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = tiny_model("mamba"), tiny_model("mamba2")
    for method, values in (("scale", SCALE), ("filter", filter_values())):
        path = saved(tmp_path, model, method, values)
        wanted = {"name": method, "rule": path}
        model(tokens(1, 9), method=wanted)
        for call in (other, other.generate, other.read):
            with pytest.raises(InputError, match="was calibrated for another model") as caught:
                call(tokens(1, 9), method=wanted)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("scale", {**SCALE, "of": "D"}, "it scales 'D'"),
        ("scale", {**SCALE, "factors": [0.5, 0]}, "factors holds 0"),
        ("scale", {**SCALE, "factors": ["1"]}, "factors holds '1'"),
        ("scale", {"of": "A"}, "'factors'"),
        ("filter", filter_values(lengths=[8, 6]), "its lengths do not rise"),
        ("filter", filter_values(layers=[{"channels": [48], "thresholds": []}]), "no channel 48"),
        ("filter", filter_values(layers=[{"channels": [0], "thresholds": [[1]]}]), "one list of"),
        (
            "filter",
            filter_values(layers=[{"channels": [0], "thresholds": [[1], [-1]]}]),
            "thresholds holds -1",
        ),
        ("plain", SCALE, "is no method with a table"),
    ],
    ids=str,
)
def test_tables_that_no_calibration_writes(
    method: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, tiny_model("mamba"), method, values)
    with pytest.raises(InputError, match=said) as caught:
        load_table(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", '{"format": "remamba-memory-1"}', "\udc80"])
def test_files_that_are_no_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="cannot be used"):
        load_table(tmp_path / "t.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_table(tmp_path)


def test_a_table_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny_model("mamba"), "scale", SCALE)
    told = json.loads(Path(path).read_text())
    told["values"]["factors"][0] = 0.6
    Path(path).write_text(json.dumps(told))
    with pytest.raises(InputError, match="changed after it was written"):
        Scale(path)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    model, ids = tiny_model("mamba"), tokens(1, 9)
    path = saved(tmp_path, model, "scale", SCALE)
    for make, said in (
        (lambda: Scale(path, factor=0.5), "give either rule, or factor and of"),
        (lambda: Scale(factor=0.0), "give a number from 0.01 to 100"),
        (lambda: Scale(factor=0.5, of="B"), "choose one of steps, A, A_log"),
        (lambda: Filter(path), "is of the method scale, not of filter"),
        (lambda: model(ids, method="filter"), "needs a table for this model"),
        (lambda: model(ids, method="scale"), "or one factor for all layers"),
        (
            lambda: model(ids, method={"name": "decimate", "layers": [2]}),
            "the model's layers are 0 to 1",
        ),
        (lambda: model(ids, method={"name": "decimate", "beta": 0}), "give a share above 0"),
        (
            lambda: model(ids, method="decimate", output_hidden_states=True),
            "each layer has another number of positions",
        ),
    ):
        with pytest.raises(InputError, match=said):
            make()


def test_steps_that_are_held_up_cannot_be_filtered(tmp_path: Path) -> None:
    model = tiny_model("mamba2", time_step_limit=(0.01, 1.0))
    path = saved(tmp_path, model, "filter", filter_values(channels=4))
    with pytest.raises(InputError, match=r"holds them at 0\.01 and above"):
        model(tokens(1, 9), method=Filter(path))


def rows(*lengths: int) -> Tensor:
    return torch.tensor(lengths)


def test_each_document_has_the_thresholds_of_the_nearest_length() -> None:
    from remamba.methods.filter import _row_thresholds

    table = RuleTable("filter", "", filter_values())
    found = _row_thresholds(table, rows(5, 6, 7, 8, 99))
    assert found[0] is not None
    assert found[0][:, 1].tolist() == [-1, 0.25, 0.25, 0.5, 0.5]
    assert found[0][:, 0].tolist() == [-1] * 5
