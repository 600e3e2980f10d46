"""What any causal language model of transformers promises: transformers' Mamba, and ours.

Each check runs on both, at the same size and with compression off, so that what is asserted is what
holds there. Where ours differs by design, DIFFERENT says why, and another test shows it.
"""

import copy
import inspect

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM
from transformers.utils.generic import find_labels

from remamba import ReMambaConfig, ReMambaForCausalLM
from tests.exactness import tokens

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 8,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
KINDS = {
    "mamba": (MambaConfig, MambaForCausalLM, {}),
    "remamba": (ReMambaConfig, ReMambaForCausalLM, {"method": "plain"}),
}
DIFFERENT = {
    "loading mismatched shapes with ignore_mismatched_sizes": "refused: nothing is made anew",
    "loading with tensors missing": "refused: nothing is made anew",
    "loading a bare backbone's tensors into the whole model": "refused: Query, Key and Theta lack",
    "attention outputs, head masks, attention implementations": "a Mamba has no attentions",
    "static and quantised caches": "refused: states have one size (test_generate.py)",
    "contrastive and DoLa decoding": "transformers has taken them out of its own code",
    "continuous batching, paged attention": "they page keys and values; `Engine` batches instead",
    "tensor and pipeline parallel plans": "transformers' Mamba has none either",
    "a cache cut back to fewer tokens (assisted decoding)": "a state cannot be cut; Mamba neither",
}
"""A common check that does not hold -> why."""
NEW = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=KINDS)
def kind(request):
    """(configuration, model class, options of the first)."""
    return KINDS[request.param]


@pytest.fixture
def make(kind):
    """Makes a tiny model; options change its configuration."""
    config, model, own = kind

    def made(**changes):
        torch.manual_seed(3)
        return model(config(**{**SIZES, **own, **changes})).eval()

    return made


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


class TestFiles:
    @pytest.mark.parametrize("tied", [True, False])
    def test_a_saved_model_gives_the_same_outputs(self, make, tied, tmp_path):
        model, ids = make(tie_word_embeddings=tied), tokens(2, 9)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert not loaded.training
        assert loaded.config.to_diff_dict() == model.config.to_diff_dict()

    def test_given_tensors_alone_are_saved(self, make, tmp_path):
        model = make(tie_word_embeddings=False)
        halved = {name: tensor / 2 for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=halved)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight / 2)

    def test_torch_saves_and_loads_the_whole_object(self, make, tmp_path):
        model, ids = make(), tokens(2, 9)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        assert torch.equal(loaded(ids).logits, model(ids).logits)

    def test_a_deep_copy_is_a_model_of_its_own(self, make):
        model, ids = make(), tokens(2, 9)
        other, before = copy.deepcopy(model), model(ids).logits
        with torch.no_grad():
            other.lm_head.weight.zero_()
        assert torch.equal(model(ids).logits, before)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_a_dtype_is_asked_for_or_kept(self, make, dtype, tmp_path):
        make().to(dtype).save_pretrained(tmp_path)
        kind = type(make())
        assert kind.from_pretrained(tmp_path).dtype == dtype
        assert kind.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32

    @pytest.mark.parametrize("place", ["cpu", "disk"])
    def test_offloaded_layers_give_the_same_outputs(self, make, place, tmp_path):
        model, ids = make(tie_word_embeddings=False), tokens(2, 9)
        model.save_pretrained(tmp_path / "model")
        places = {name: "cpu" for name, _ in model.named_children()}
        del places["backbone"]
        places |= {f"backbone.{name}": "cpu" for name, _ in model.backbone.named_children()}
        del places["backbone.layers"]
        places |= {"backbone.layers.0": "cpu", "backbone.layers.1": place}
        away = type(model).from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
        )
        assert any(x.is_meta for x in away.parameters()) == (place == "disk")
        torch.testing.assert_close(away(ids).logits, model(ids).logits)


class TestWeights:
    def test_tied_heads_share_one_tensor_and_untied_ones_do_not(self, make):
        for tied in (True, False):
            model = make(tie_word_embeddings=tied)
            head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
            assert (head.weight is embeddings.weight) == tied
            assert ("lm_head.weight" in dict(model.named_parameters())) != tied
        assert set(model._tied_weights_keys) == {"lm_head.weight"}

    @pytest.mark.parametrize("tied", [True, False])
    def test_embeddings_are_resized_with_the_head(self, make, tied):
        model, ids = make(tie_word_embeddings=tied), tokens(2, 9)
        before = model(ids).logits
        for size in (71, 50):
            model.resize_token_embeddings(size)
            assert model.config.vocab_size == size
            assert model.get_input_embeddings().weight.shape[0] == size
            assert model.get_output_embeddings().weight.shape[0] == size
            assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
            found = model(ids.clamp(max=size - 1)).logits
            assert found.shape[-1] == size
        model = make(tie_word_embeddings=tied)
        model.resize_token_embeddings(71)
        torch.testing.assert_close(model(ids).logits[..., :61], before)

    def test_embeddings_and_head_are_replaced(self, make):
        model = make(tie_word_embeddings=False)
        new, head = torch.nn.Embedding(61, 24), torch.nn.Linear(24, 61, bias=False)
        model.set_input_embeddings(new)
        model.set_output_embeddings(head)
        assert model.get_input_embeddings() is new
        assert model.get_output_embeddings() is head
        assert model(tokens(1, 5)).logits.shape == (1, 5, 61)

    def test_one_seed_gives_one_model_and_all_of_it_is_finite(self, make):
        assert same(make(), make())
        assert all(torch.isfinite(x).all() for x in make().parameters())


class TestForward:
    def test_the_trainer_looks_for_labels_alone(self, make):
        assert find_labels(type(make())) == ["labels"]

    def test_the_first_arguments_are_those_of_a_language_model(self, make):
        names = list(inspect.signature(make().forward).parameters)
        assert names[0] == "input_ids"
        wanted = {"attention_mask", "inputs_embeds", "labels", "output_hidden_states"}
        assert wanted | {"return_dict", "use_cache", "logits_to_keep"} <= set(names)

    def test_a_tuple_holds_what_the_output_holds(self, make):
        model, ids = make(), tokens(2, 9)
        options = {"labels": ids, "output_hidden_states": True, "use_cache": False}
        out, values = model(ids, **options), model(ids, return_dict=False, **options)
        assert torch.equal(values[0], out.loss)
        assert torch.equal(values[1], out.logits)
        states = next(value for value in values if isinstance(value, tuple))
        assert all(map(torch.equal, states, out.hidden_states))

    def test_hidden_states_are_one_a_layer_and_the_norm(self, make):
        model, ids = make(), tokens(2, 9)
        states = model(ids, output_hidden_states=True).hidden_states
        assert [tuple(x.shape) for x in states] == 3 * [(2, 9, 24)]
        torch.testing.assert_close(model.lm_head(states[-1]), model(ids).logits)

    def test_embeddings_of_the_ids_are_the_ids(self, make):
        model, ids = make(), tokens(2, 9)
        embeds = model.get_input_embeddings()(ids)
        torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(ids).logits)
        with pytest.raises(ValueError, match="input_ids"):
            model(ids, inputs_embeds=embeds)

    def test_two_runs_are_equal(self, make):
        model, ids = make(), tokens(2, 9)
        assert torch.equal(model(ids).logits, model(ids).logits)

    def test_rows_padded_on_the_left_are_rows_alone(self, make):
        model, ids = make(), tokens(2, 9)
        mask = (torch.arange(9) >= torch.tensor([[0], [4]])).long()
        found = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[1, 4:], model(ids[1:, 4:]).logits[0], rtol=1e-4, atol=1e-5)

    def test_a_cache_goes_on_with_the_text(self, make):
        model, ids = make(), tokens(2, 9)
        out = model(ids[:, :8], use_cache=True)
        step = model(ids[:, 8:], cache_params=out.cache_params, use_cache=True)
        whole = model(ids).logits[:, -1]
        torch.testing.assert_close(step.logits[:, -1], whole, rtol=1e-4, atol=1e-5)

    def test_under_compile(self, make):
        model, ids = make(), tokens(2, 9)
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


class TestTraining:
    @pytest.mark.parametrize("recomputed", [False, True])
    def test_every_part_that_is_read_learns(self, make, recomputed):
        model, ids = make().train(), tokens(2, 9)
        if recomputed:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        idle = {name for name, x in model.named_parameters() if x.grad is None}
        assert all("adaption" in name or "compressor" in name for name in idle)

    def test_the_loss_is_that_of_the_shifted_logits(self, make):
        model, ids = make(), tokens(2, 9)
        out = model(ids, labels=ids)
        logits = out.logits[:, :-1].flatten(0, 1)
        wanted = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        torch.testing.assert_close(out.loss, wanted)

    def test_hidden_states_keep_their_gradients(self, make):
        model, ids = make().train(), tokens(2, 9)
        out = model(ids, output_hidden_states=True)
        for x in out.hidden_states:
            x.retain_grad()
        out.logits.flatten()[0].backward()
        assert all(x.grad is not None for x in out.hidden_states)

    def test_frozen_embeddings_let_adapters_learn(self, make):
        model, ids = make().train(), tokens(2, 9)
        for x in model.parameters():
            x.requires_grad_(False)
        model.enable_input_require_grads()
        model.backbone.norm_f.weight.requires_grad_(True)
        model(ids, labels=ids).loss.backward()
        assert model.backbone.norm_f.weight.grad is not None


class TestGenerate:
    def argmax(self, model, ids, steps=4):
        for _ in range(steps):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        return ids

    def test_greedy_is_the_argmax_of_forwards(self, make):
        model, ids = make(), tokens(2, 9)
        assert torch.equal(model.generate(ids, **NEW), self.argmax(model, ids))

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_with_and_without_a_cache(self, make, use_cache):
        model, ids = make(), tokens(2, 9)
        found = model.generate(ids, use_cache=use_cache, **NEW)
        assert torch.equal(found, self.argmax(model, ids))

    def test_sampling_by_a_seed(self, make):
        model, ids = make(), tokens(2, 9)
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            found.append(model.generate(ids, **{**NEW, "do_sample": True, "top_k": 10}))
        assert torch.equal(*found)

    @pytest.mark.parametrize("sampled", [False, True])
    def test_beams(self, make, sampled):
        model, ids = make(), tokens(2, 9)
        options = {**NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": sampled}
        out = model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)
        assert out.sequences.shape == (4, 13)
        assert torch.equal(out.sequences[:, :9], ids.repeat_interleave(2, 0))
        if not sampled:
            one = model.generate(ids, **{**options, "num_return_sequences": 1})
            assert torch.equal(one, out.sequences[::2])

    def test_left_padding_changes_nothing(self, make):
        model, ids = make(), tokens(1, 9)
        wide = torch.nn.functional.pad(ids, (5, 0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
        found = model.generate(wide, attention_mask=mask, **NEW)
        assert torch.equal(found[:, 5:], model.generate(ids, **NEW))

    def test_from_embeddings(self, make):
        model, ids = make(), tokens(2, 9)
        embeds = model.get_input_embeddings()(ids)
        found = model.generate(inputs_embeds=embeds, **NEW)
        assert torch.equal(found, model.generate(ids, **NEW)[:, 9:])

    def test_hidden_states_of_every_step(self, make):
        model, ids = make(), tokens(2, 9)
        out = model.generate(ids, output_hidden_states=True, return_dict_in_generate=True, **NEW)
        assert [len(step) for step in out.hidden_states] == 4 * [3]
        assert [step[0].shape[1] for step in out.hidden_states] == [9, 1, 1, 1]

    def test_a_generation_config_counts(self, make, tmp_path):
        model, ids = make(), tokens(2, 9)
        found = model.generate(ids, generation_config=GenerationConfig(**NEW))
        assert torch.equal(found, model.generate(ids, **NEW))
        model.generation_config.max_new_tokens = 3
        model.save_pretrained(tmp_path)
        assert type(model).from_pretrained(tmp_path).generation_config.max_new_tokens == 3

    def test_unknown_options_are_refused(self, make):
        with pytest.raises(ValueError, match="no_such_option"):
            make().generate(tokens(2, 9), no_such_option=1, **NEW)

    def test_what_forward_may_need_is_handed_on(self, make):
        step = make().prepare_inputs_for_generation(tokens(2, 9), something="kept")
        assert step["something"] == "kept"

    @pytest.mark.parametrize("way", ["prompt_lookup", "assistant"])
    def test_assisted_decoding_is_refused(self, make, way):
        """A state cannot be taken back, so drafts cannot be thrown away."""
        more = {"prompt_lookup_num_tokens": 2} if way == "prompt_lookup" else {}
        if way == "assistant":
            more = {"assistant_model": make()}
        with pytest.raises(ValueError, match="stateful"):
            make().generate(tokens(1, 9), **more, **NEW)


class TestConfiguration:
    def test_to_json_and_back(self, kind, tmp_path):
        config = kind[0](**SIZES, **kind[2])
        config.to_json_file(tmp_path / "config.json")
        assert kind[0].from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()
        assert kind[0].from_dict(config.to_dict()).to_dict() == config.to_dict()

    def test_saved_and_loaded_from_a_subfolder_too(self, kind, tmp_path):
        config = kind[0](**SIZES, **kind[2])
        config.save_pretrained(tmp_path / "inner")
        for loaded in (
            kind[0].from_pretrained(tmp_path / "inner"),
            kind[0].from_pretrained(tmp_path, subfolder="inner"),
        ):
            assert loaded.to_diff_dict() == config.to_diff_dict()

    def test_without_parameters_and_by_common_names(self, kind):
        config = kind[0]()
        assert (config.hidden_size, config.num_hidden_layers) > (0, 0)
        config.hidden_size = 48
        assert config.to_dict()["hidden_size"] == 48
        assert kind[0](num_labels=3).num_labels == 3
        assert kind[0](output_hidden_states=True).output_hidden_states
