"""Files that commit 570a7f5 wrote load, and give the logits that it gave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from remamba import ReMambaForCausalLM, cli

OLD = Path(__file__).parent / "data" / "570a7f5"


@pytest.fixture(scope="module")
def expected():
    return load_file(OLD / "expected.safetensors")


def last(model, expected, **options):
    """Logits of the questions' six tokens behind the document."""
    rows = torch.cat([expected["document"].expand(2, -1), expected["questions"]], dim=1)
    with torch.no_grad():
        return model(rows, question_lengths=torch.tensor([6, 6]), **options).logits[:, -6:]


def test_a_model_directory(expected, assert_close):
    model = ReMambaForCausalLM.from_pretrained(OLD / "model").eval()
    assert_close(last(model, expected), expected["own_logits"])
    assert_close(last(model, expected, compression=False), expected["plain_logits"])


def test_a_memory_and_the_model_that_wrote_it(expected, assert_close):
    model = ReMambaForCausalLM.from_pretrained(OLD / "model").eval()
    memory = model.load_memory(OLD / "document.memory")
    with torch.no_grad():
        found = model(expected["questions"], memory=memory).logits
    assert_close(found[:, -6:], expected["memory_logits"])


def test_an_adapter(expected, assert_close, tmp_path):
    shutil.copytree(OLD / "adapter", tmp_path / "adapter")
    record = json.loads((OLD / "adapter" / "adapter_config.json").read_text())
    record["base_model_name_or_path"] = str(OLD / "model")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(record))
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    model = ReMambaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_close(last(model, expected), expected["merged_logits"])
