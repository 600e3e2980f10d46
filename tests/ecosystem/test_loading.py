"""from_pretrained in all its forms, and loading by those who have not imported the package."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

from remamba import InputError, ReMambaConfig, ReMambaForCausalLM, ReMambaModel
from tests.exactness import BACKBONES, tiny_model, tokens
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]


def same(a, b):
    """Whether two models hold the same tensors by the same names."""
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def run(program, *words, **environment):
    """A program in a fresh interpreter with the package at hand; its result."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a tiny model and its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("loading") / "model")


class TestFromPretrained:
    def test_by_keyword(self, saved):
        model = ReMambaForCausalLM.from_pretrained(pretrained_model_name_or_path=saved)
        assert same(model, ReMambaForCausalLM.from_pretrained(saved))

    @pytest.mark.parametrize("kind", [ReMambaForCausalLM, ReMambaModel])
    def test_from_a_subfolder(self, kind, tmp_path):
        model = tiny_model("mamba")
        model.save_pretrained(tmp_path / "inner" / "most")
        loaded = kind.from_pretrained(tmp_path, subfolder="inner/most")
        assert same(loaded.backbone, model.backbone)
        with pytest.raises(InputError, match=r"holds no config.json"):
            kind.from_pretrained(tmp_path, subfolder="elsewhere")

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_of_a_configuration_and_tensors(self, backbone):
        model = tiny_model(backbone)
        loaded = ReMambaForCausalLM.from_pretrained(
            None, config=model.config, state_dict=model.state_dict()
        )
        assert same(loaded, model)
        short = model.state_dict()
        del short["backbone.norm_f.weight"]
        with pytest.raises(InputError, match="state_dict has missing tensors"):
            ReMambaForCausalLM.from_pretrained(None, config=model.config, state_dict=short)

    def test_tensors_without_their_sizes_or_beside_a_name_are_refused(self, saved):
        given = {"state_dict": tiny_model("mamba").state_dict()}
        for name, options in ((None, given), (saved, given), (None, {})):
            with pytest.raises(InputError, match=r"both config= and state_dict="):
                ReMambaForCausalLM.from_pretrained(name, **options)

    def test_shards_and_a_variant(self, tmp_path):
        model = tiny_model("mamba2")
        model.save_pretrained(tmp_path, max_shard_size="8KB", variant="fp16")
        files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
        assert len(files) > 1 and all("fp16" in name for name in files)
        assert same(ReMambaForCausalLM.from_pretrained(tmp_path, variant="fp16"), model)
        with pytest.raises(InputError, match="cannot be loaded"):
            ReMambaForCausalLM.from_pretrained(tmp_path)

    def test_foreign_and_misshapen_tensors_are_refused(self, tmp_path):
        tiny_model("mamba").save_pretrained(tmp_path)
        for changes, said in (
            ({"hidden_size": 32}, "has mismatched tensors: backbone.embeddings.weight"),
            ({"num_hidden_layers": 1}, "has unexpected tensors: backbone.layers.1"),
            ({"num_hidden_layers": 3}, "has missing tensors: backbone.layers.2"),
        ):
            config = ReMambaConfig(**{**tiny_model("mamba").config.to_dict(), **changes})
            with pytest.raises(InputError, match=said):
                ReMambaForCausalLM.from_pretrained(tmp_path, config=config)


class TestByTheAutoClasses:
    def test_without_importing_the_package(self, saved, tmp_path):
        done = run(
            """
            import sys
            from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
            here, there = sys.argv[1:]
            assert "remamba" not in sys.modules
            model = AutoModelForCausalLM.from_pretrained(here, trust_remote_code=True)
            import remamba
            assert type(model) is remamba.ReMambaForCausalLM
            config = AutoConfig.from_pretrained(here, trust_remote_code=True)
            assert type(config) is remamba.ReMambaConfig
            assert type(AutoModel.from_pretrained(here)) is remamba.ReMambaModel
            model.save_pretrained(there)
            again = AutoModelForCausalLM.from_pretrained(there, trust_remote_code=True)
            assert type(again) is remamba.ReMambaForCausalLM
            ids = AutoTokenizer.from_pretrained(here)("Who?", return_tensors="pt").input_ids
            assert (model(ids).logits == again(ids).logits).all()
            """,
            saved,
            tmp_path / "again",
            HF_HOME=str(tmp_path / "home"),
        )
        assert done.returncode == 0, done.stderr
        files = {file.name for file in (tmp_path / "again").iterdir()}
        wanted = {"config.json", "generation_config.json", "model.safetensors", "remamba_auto.py"}
        assert files == wanted

    def test_where_it_is_not_installed_the_package_and_the_command_are_named(self, saved, tmp_path):
        done = run(
            """
            import sys
            sys.path = [place for place in sys.path if place != sys.argv[2]]
            class Hidden:
                def find_spec(self, name, path, target=None):
                    if name.partition(".")[0] == "remamba":
                        raise ModuleNotFoundError("No module named 'remamba'", name="remamba")
            sys.meta_path.insert(0, Hidden())
            from transformers import AutoModelForCausalLM
            AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
            """,
            saved,
            ROOT,
            HF_HOME=str(tmp_path / "home"),
        )
        assert done.returncode == 1
        assert "ImportError" in done.stderr and "`pip install remamba`" in done.stderr

    def test_converted_models_carry_the_loader(self, tmp_path):
        import transformers

        from remamba import convert

        config = transformers.MambaConfig(
            vocab_size=61, hidden_size=24, num_hidden_layers=2, state_size=8
        )
        transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "theirs")
        convert(tmp_path / "theirs", tmp_path / "ours")
        values = json.loads((tmp_path / "ours" / "config.json").read_text())
        for reference in values["auto_map"].values():
            module, name = reference.split(".")
            assert name in (tmp_path / "ours" / f"{module}.py").read_text()

    def test_embedded_models_by_name_without_the_network(self):
        done = run(
            """
            import socket
            def connect(*_): raise AssertionError("the network was asked")
            socket.socket.connect = socket.getaddrinfo = connect
            import remamba
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
            name = "remamba-tiny"
            assert type(AutoConfig.from_pretrained(name)) is remamba.ReMambaConfig
            model = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path=name)
            ids = AutoTokenizer.from_pretrained(name)("Who?", return_tensors="pt").input_ids
            assert model(ids).logits.isfinite().all()
            """,
            HF_HUB_OFFLINE="0",
            TRANSFORMERS_OFFLINE="0",
        )
        assert done.returncode == 0, done.stderr

    def test_other_names_and_directories_go_their_ordinary_way(self, saved, tmp_path, monkeypatch):
        assert type(AutoConfig.from_pretrained(saved)) is ReMambaConfig
        with pytest.raises(OSError, match="connect to"):
            AutoTokenizer.from_pretrained("remamba-tinier")
        (tmp_path / "remamba-tiny").symlink_to(saved)
        monkeypatch.chdir(tmp_path)
        model = AutoModelForCausalLM.from_pretrained("remamba-tiny")
        assert same(model, ReMambaForCausalLM.from_pretrained(saved))


class TestTheHub:
    def test_a_name_without_a_network_is_refused_at_once(self, tmp_path):
        """Nobody listens at the address that stands for the hub."""
        done = run(
            """
            import time
            from remamba import InputError, ReMambaForCausalLM
            begin = time.perf_counter()
            try:
                ReMambaForCausalLM.from_pretrained("somebody/something")
            except InputError as error:
                print(error)
            print(time.perf_counter() - begin)
            """,
            HF_HUB_OFFLINE="0",
            TRANSFORMERS_OFFLINE="0",
            HF_ENDPOINT="http://127.0.0.1:9",
            HF_HOME=str(tmp_path),
        )
        assert done.returncode == 0, done.stderr
        said, seconds = done.stdout.splitlines()
        assert "'somebody/something' (the hub cannot be reached, and there is no such model" in said
        assert "Retrying" not in done.stderr
        assert float(seconds) < 8  # the trials that are left out wait for 23


class TestOthersWhoLoad:
    def test_a_pipeline_writes_what_generate_writes(self, saved):
        model = ReMambaForCausalLM.from_pretrained(saved)
        tokenizer = AutoTokenizer.from_pretrained(saved)
        ids = tokenizer("Who lives in Lisbon?", return_tensors="pt").input_ids
        wanted = tokenizer.decode(model.generate(ids, max_new_tokens=5, do_sample=False)[0])
        for given in (model, str(saved)):
            write = pipeline("text-generation", model=given, tokenizer=tokenizer)
            made = write("Who lives in Lisbon?", max_new_tokens=5, do_sample=False)
            assert made[0]["generated_text"] == wanted

    def test_transformers_serve_loads_a_directory(self, saved):
        """The server's manager of models, by which `transformers serve DIRECTORY` loads."""
        from transformers.cli.serving.model_manager import ModelManager

        manager = ModelManager(device="cpu", trust_remote_code=True)
        model, processor = manager.load_model_and_processor(f"{saved}@main")
        assert type(model) is ReMambaForCausalLM
        ids = processor("Who?", return_tensors="pt").input_ids
        assert torch.equal(model(ids).logits, ReMambaForCausalLM.from_pretrained(saved)(ids).logits)


class TestReading:
    def test_a_loaded_model_keeps_no_graph_and_one_in_training_does(self):
        model, ids = tiny_model("mamba"), tokens(2, 12)
        memory = model.read(ids, method="plain")
        kept = (memory.hidden, *memory.cache.ssm_states, *memory.cache.conv_states)
        assert not any(x.requires_grad for x in kept)
        memory = model.train().read(ids, method="plain")
        assert all(x.requires_grad for x in memory.cache.ssm_states)
        with torch.no_grad():
            memory = model.read(ids, method="plain")
        assert not any(x.requires_grad for x in memory.cache.ssm_states)
