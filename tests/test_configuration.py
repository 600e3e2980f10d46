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
        ({"min_prompt_length": -1}, "min_prompt_length"),
        ({"selector": "best"}, "selector='best'"),
        ({"placement": "middle"}, "placement='middle'"),
        ({"adaption": "soft"}, "adaption='soft'"),
        ({"score_gradient": "half"}, "score_gradient='half'"),
        ({"window": 0}, "window = 0 must be at least 1"),
        ({"window": 1.5}, "window = 1.5 must be a number"),
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
