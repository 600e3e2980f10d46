"""CompressionConfig and ReMambaConfig: ranges, round trips, Auto classes."""

import pytest
from transformers import AutoConfig

from remamba import CompressionConfig, InputError, ReMambaConfig


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"start": -0.1}, "start"),
        ({"start": 1.0}, "start"),
        ({"length": 0.0}, "length"),
        ({"length": 1.2}, "length"),
        ({"keep_ratio": 0.0}, "keep_ratio"),
        ({"keep_ratio": 1.5}, "keep_ratio"),
        ({"start": 0.9, "length": 0.3}, "swallow the last token"),
        ({"num_kept": 0}, "num_kept"),
        ({"keep_ratio": 0.1, "num_kept": 4}, "both tell how much is kept"),
        ({"selector": "none"}, "now the method 'plain'"),
        ({"selector": "drop"}, "now the method 'drop'"),
        ({"selector": "random", "window": 2}, "window = 2 has no effect"),
        ({"adaption": "none", "importance": "relative"}, "importance='relative' has no effect"),
        ({"selector": "best"}, "selector='best'"),
        ({"placement": "middle"}, "placement='middle'"),
        ({"adaption": "soft"}, "adaption='soft'"),
        ({"start": True}, "start = True must be a number"),
        ({"window": 0}, "window = 0 must be at least 1"),
        ({"window": 1.5}, "window = 1.5 must be a whole number"),
        ({"importance": "exp"}, "importance='exp'"),
        ({"value": "token"}, "value='token'"),
    ],
    ids=str,
)
def test_value_outside_its_range_is_named(values, named):
    with pytest.raises(InputError, match=named) as caught:
        CompressionConfig(**values)
    assert "\n" not in str(caught.value)


def test_unknown_setting_is_named():
    with pytest.raises(InputError, match="keep_ration"):
        CompressionConfig.from_dict({"keep_ration": 0.1})


def test_changes_take_back_what_would_lose_its_effect():
    own = CompressionConfig(num_kept=4, window=3, importance="relative")
    assert own.replace(keep_ratio=0.2).num_kept is None
    assert own.replace(keep_ratio=0.2).replace(num_kept=5).keep_ratio is None
    assert own.replace(selector="random").window == 1
    assert own.replace(adaption="none").importance == "relu"
    assert own.replace(start=0.0) == own
    assert CompressionConfig().keep_ratio == 0.009
    assert "num_kept" not in CompressionConfig().to_dict()
    for settings in (own, CompressionConfig(keep_ratio=0.3, selector="fixed")):
        assert CompressionConfig.from_dict(settings.to_dict()) == settings


FORMER = {
    "start": 0.1, "length": 0.5, "keep_ratio": 0.15, "num_kept": 6, "selector": "topk",
    "window": 3, "placement": "replace", "adaption": "exact", "value": "residual",
    "importance": "relative", "score_gradient": "scaled", "min_prompt_length": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "method", "expected"),
    [
        ({}, "remamba", {"num_kept": 6, "window": 3}),
        ({"num_kept": None}, "remamba", {"keep_ratio": 0.15, "window": 3}),
        ({"selector": "random"}, "remamba", {"num_kept": 6, "selector": "random"}),
        ({"selector": "none"}, "plain", {"num_kept": 6}),
        ({"selector": "drop"}, "drop", {"num_kept": 6}),
    ],
    ids=str,
)
def test_settings_of_version_0_1_still_load(changes, method, expected):
    config = ReMambaConfig(compression={**FORMER, **changes})
    rest = {"start": 0.1, "length": 0.5, "adaption": "exact", "value": "residual"}
    wanted = CompressionConfig(**rest, importance="relative", **expected)
    assert (config.method, config.compression_config) == (method, wanted)
    assert ReMambaConfig(**config.to_dict()).compression_config == wanted


def test_what_version_0_1_could_ask_for_and_is_gone_is_refused():
    for name, value in (("min_prompt_length", 5), ("score_gradient", "half")):
        with pytest.raises(InputError, match=f"'{name}' is gone"):
            ReMambaConfig(compression={**FORMER, name: value})
    for wrong in ([], "", 3):
        with pytest.raises(InputError, match="must hold settings by name"):
            ReMambaConfig(compression=wrong)


def test_config_survives_its_file(tmp_path):
    config = ReMambaConfig(
        backbone_type="mamba2",
        hidden_size=32,
        head_dim=16,
        time_step_limit=(0.0, 0.5),
        compression=CompressionConfig(length=0.3, num_kept=4),
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ReMambaConfig)
    assert loaded.compression_config == CompressionConfig(length=0.3, num_kept=4)
    assert loaded.dt_limit == (0.0, 0.5)
    assert ReMambaConfig().dt_limit == (0.0, float("inf"))


@pytest.mark.parametrize(
    "values",
    [
        {"backbone_type": "llama"},
        {"backbone_type": "mamba2", "num_heads": 3, "head_dim": 7},
        {"backbone_type": "mamba2", "hidden_size": 96, "head_dim": 64, "n_groups": 2},
        {"compressor_init": "zeros"},
        {"question_template": "no place for it"},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(values):
    with pytest.raises(InputError):
        ReMambaConfig(**values)
