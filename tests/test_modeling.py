"""The models: losses, gradients, checkpointing, refusals. Equalities live in exactness.py."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from remamba import CompressionConfig, InputError, ReMambaForCausalLM, ReMambaModel
from tests.exactness import BACKBONES, FORMS, error, questions, tiny_model, tokens

FIRST = BACKBONES[:2]


def labelled(ids, prompt):
    labels = ids.clone()
    labels[:, :prompt] = -100
    return labels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backbone", FIRST)
def test_loss_equals_cross_entropy_of_the_returned_logits(backbone, form):
    model, ids = tiny_model(backbone), tokens(3, 30)
    options = {"compression": FORMS[form], **questions(form, 4, 4, 4)}
    out = model(ids, labels=labelled(ids, 24), **options)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten()
    )
    assert int((out.labels != -100).sum()) == 3 * 6
    torch.testing.assert_close(out.loss, expected)
    alone = model(ids, labels=labelled(ids, 24), return_logits=False, **options)
    assert alone.logits is None
    torch.testing.assert_close(alone.loss, expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_reaches_every_parameter(backbone):
    model, ids = tiny_model(backbone).train(), tokens(2, 30)
    model(ids, labels=labelled(ids, 24), compression=FORMS["paper"]).loss.backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() == 0
    ]
    assert silent == []


@pytest.mark.parametrize("form", ["paper", "exact", "before"])
@pytest.mark.parametrize("backbone", FIRST)
def test_gradient_checkpointing_keeps_the_adaption(backbone, form):
    gradients = []
    for enabled in (False, True):
        model, ids = tiny_model(backbone).train(), tokens(2, 30)
        if enabled:
            model.gradient_checkpointing_enable() if not hasattr(
                model, "activation_checkpointing_enable"
            ) else model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.backbone.layers)
        options = {"compression": FORMS[form], **questions(form, 4, 4)}
        out = model(ids, labels=labelled(ids, 24), **options)
        out.loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "compressor.query_proj.0.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert error(gradients[1][name], gradient) < 1e-4, name


@pytest.mark.parametrize(("form", "spans"), [("whole", ()), ("before", ()), ("before", (3,))])
@pytest.mark.parametrize("backbone", FIRST)
def test_questions_that_share_a_document_train_as_rows_of_their_own(backbone, form, spans):
    documents, rows = tokens(2, 25), tokens(6, 9, seed=1)
    unsplit = torch.cat([documents.repeat_interleave(3, 0), rows], 1)
    targets = torch.rand(6, 25, *spans, generator=torch.Generator().manual_seed(0)) < 0.1
    results = []
    for shared in (True, False):
        model = tiny_model(backbone).train()
        if shared:
            out = model(
                rows, labels=labelled(rows, 5), document_ids=documents, score_targets=targets,
                compression=FORMS[form], with_stage1_loss=True,
            )  # fmt: skip
        else:
            out = model(
                unsplit, labels=labelled(unsplit, 30), question_lengths=torch.full((6,), 5),
                score_targets=torch.cat([targets, targets.new_zeros(6, 9, *spans)], 1),
                compression=FORMS[form], with_stage1_loss=True,
            )  # fmt: skip
        loss = out.loss + out.stage1_loss + out.score_loss
        loss.backward()
        gradient = model.backbone.layers[0].mixer.in_proj.weight.grad
        results.append((loss.detach(), out.correct, out.stage1_correct, gradient))
    for found, expected in zip(*results, strict=True):
        assert error(found.float(), expected.float()) < 1e-4


def test_stage1_loss_is_that_of_plain_mamba():
    model, ids = tiny_model("mamba2"), tokens(2, 30)
    labels = labelled(ids, 24)
    plain = model(ids, labels=labels, compression=False)
    out = model(ids, labels=labels, compression=FORMS["paper"], with_stage1_loss=True)
    torch.testing.assert_close(out.stage1_loss, plain.loss)
    assert torch.equal(out.stage1_correct, plain.correct)


def test_document_loss_is_next_token_loss_of_the_documents():
    model, documents, rows = tiny_model("mamba2"), tokens(2, 25), tokens(2, 9, seed=1)
    mask = torch.ones_like(documents)
    mask[1, 20:] = 0
    out = model(
        rows, labels=labelled(rows, 5), document_ids=documents, document_attention_mask=mask,
        compression=FORMS["whole"], with_document_loss=True,
    )  # fmt: skip
    plain = model(documents, compression=False).logits
    losses = torch.nn.functional.cross_entropy(
        plain[:, :-1].flatten(0, 1), documents[:, 1:].flatten(), reduction="none"
    ).view(2, -1)
    expected = torch.cat([losses[0], losses[1, :19]]).mean()
    torch.testing.assert_close(out.document_loss, expected)


def test_inputs_embeds_are_as_good_as_ids():
    model, ids = tiny_model("mamba"), tokens(2, 30)
    embeds = model.get_input_embeddings()(ids)
    a, b = (
        model(ids, compression=FORMS["paper"]),
        model(inputs_embeds=embeds, compression=FORMS["paper"]),
    )
    torch.testing.assert_close(a.logits, b.logits)
    steps = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(inputs_embeds=embeds, **steps), model.generate(ids, **steps)[:, 30:]
    )


def test_the_residual_value_takes_the_tokens_or_embeddings_given():
    model, ids = tiny_model("mamba"), tokens(2, 30)
    embeds = model.get_input_embeddings()(ids)
    paper = FORMS["paper"].replace(value="residual")
    found = model(ids, compression=paper).logits
    torch.testing.assert_close(found, model(inputs_embeds=embeds, compression=paper).logits)
    assert error(found, model(ids, compression=FORMS["paper"]).logits) > 1e-3
    whole = {"compression": FORMS["whole"].replace(value="residual"), **questions("whole", 4, 4)}
    torch.testing.assert_close(
        model(ids, **whole).logits, model(inputs_embeds=embeds, **whole).logits
    )
    before = {"compression": FORMS["before"], **questions("before", 4, 4)}
    assert model(ids, **before).logits.isfinite().all()
    with pytest.raises(InputError, match="read it again from token ids"):
        model(inputs_embeds=embeds, **before)


@pytest.mark.parametrize("backbone", FIRST)
def test_beam_search_reorders_the_states(backbone):
    """The best of 3 beams, scored again by one forward, has the likelihood that generate states."""
    model, ids = tiny_model(backbone), tokens(2, 20)
    out = model.generate(
        ids, num_beams=3, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
        compression=FORMS["paper"],
    )  # fmt: skip
    new = out.sequences[:, 20:]
    logits = model(
        out.sequences, prompt_lengths=torch.tensor([20, 20]), compression=FORMS["paper"]
    ).logits[:, -6:-1]
    chosen = logits.log_softmax(-1).gather(-1, new.unsqueeze(-1)).sum((1, 2))
    torch.testing.assert_close(chosen, out.sequences_scores, rtol=1e-4, atol=1e-4)


def test_generate_returns_the_kept_positions_and_a_cache_to_go_on_with():
    model, ids = tiny_model("mamba2"), tokens(1, 30)
    steps = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None,
             "return_dict_in_generate": True}  # fmt: skip
    out = model.generate(ids, max_new_tokens=4, compression=FORMS["paper"], **steps)
    kept = model(ids, compression=FORMS["paper"]).kept
    assert torch.equal(out.kept.index, kept.index)
    torch.testing.assert_close(out.kept.scores, kept.scores)
    assert [position for position, _ in out.kept.rows()[0]] == kept.index[0].tolist()
    longer = model.generate(ids, max_new_tokens=8, compression=FORMS["paper"], **steps).sequences
    more = model.generate(out.sequences, cache_params=out.cache_params, max_new_tokens=4, **steps)
    assert torch.equal(more.sequences, longer)
    assert more.kept is None  # this call kept nothing


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_model_is_loaded_by_the_auto_classes(backbone, tmp_path):
    model, ids = tiny_model(backbone), tokens(2, 20)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is ReMambaForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    states = AutoModel.from_pretrained(tmp_path)
    assert type(states) is ReMambaModel
    assert torch.equal(model.lm_head(states(ids).last_hidden_state), model(ids).logits)


class TestRefusals:
    """Bad input: one line that names the value and the mend."""

    def refused(self, match, function, *args, **kwargs):
        with pytest.raises(InputError, match=match) as caught:
            function(*args, **kwargs)
        assert "\n" not in str(caught.value)

    def test_mask_with_holes(self):
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[1, 3] = 0
        self.refused("row 1 has holes", tiny_model("mamba"), tokens(2, 8), mask)

    def test_empty_prompt(self):
        model = tiny_model("mamba")
        self.refused("empty", model, torch.zeros(1, 0, dtype=torch.long))
        self.refused("row 1 is empty", model, tokens(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]))

    def test_lengths_that_do_not_fit(self):
        model, ids = tiny_model("mamba"), tokens(2, 8)
        self.refused("prompt_lengths", model, ids, prompt_lengths=torch.tensor([9, 3]))
        self.refused("question_lengths", model, ids, question_lengths=torch.tensor([-1, 3]))
        self.refused("piece_length", model, ids, piece_length=0)

    def test_before_question_without_a_question(self):
        self.refused(
            "question_lengths", tiny_model("mamba"), tokens(1, 8), compression=FORMS["before"]
        )

    def test_memory_that_cannot_serve(self):
        model = tiny_model("mamba")
        self.refused("reads the document again", model.read, tokens(1, 8),
                     compression=FORMS["paper"])  # fmt: skip
        memory = model.read(tokens(2, 8), compression=FORMS["whole"])
        self.refused("divide", model, tokens(3, 4), memory=memory)
        self.refused("a memory cannot serve placement='replace'", model, tokens(2, 4),
                     memory=memory, compression=FORMS["paper"])  # fmt: skip

    def test_memory_of_another_model(self):
        memory = tiny_model("mamba").read(tokens(2, 8), compression=FORMS["whole"])
        other = tiny_model("mamba")
        with torch.no_grad():
            other.backbone.norm_f.weight.mul_(1.5)
        self.refused("another model", other, tokens(2, 4), memory=memory)

    def test_cache_that_holds_a_text(self):
        model = tiny_model("mamba")
        memory = model.read(tokens(2, 8), compression=FORMS["whole"])
        cache = model(tokens(2, 8)).cache_params
        self.refused("empty cache", model, tokens(2, 4), memory=memory, cache_params=cache)
        self.refused("holds 2 rows", model, tokens(3, 4), cache_params=cache)

    def test_generation_without_a_cache(self):
        self.refused("use_cache=False", tiny_model("mamba").generate, tokens(1, 8),
                     use_cache=False, max_new_tokens=2)  # fmt: skip

    def test_tokens_of_another_vocabulary(self):
        self.refused("token id 99", tiny_model("mamba"), torch.tensor([[1, 99]]))
        self.refused("shape", tiny_model("mamba"), torch.tensor([1, 2]))

    def test_targets_that_do_not_cover_the_span(self):
        memory = (model := tiny_model("mamba")).read(tokens(1, 8), compression=FORMS["whole"])
        self.refused("score_targets", model, tokens(1, 4), memory=memory,
                     score_targets=torch.ones(1, 4, dtype=torch.bool))  # fmt: skip

    def test_logits_that_are_not_finite(self):
        model = tiny_model("mamba")
        model.backbone.norm_f.weight.data[0] = float("nan")
        self.refused("not finite", model, tokens(1, 8))

    @pytest.fixture
    def folder(self, tmp_path):
        tiny_model("mamba").save_pretrained(tmp_path)
        return tmp_path

    def test_directory_of_another_architecture(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        self.refused("'llama'.*remamba convert", ReMambaForCausalLM.from_pretrained, folder)

    def test_truncated_weights(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused("truncated or corrupt", ReMambaForCausalLM.from_pretrained, folder)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("hidden_size", "abc"), ("num_hidden_layers", None), ("compression", {"keep_ratio": "a"})],
    )
    def test_configuration_of_the_wrong_kind(self, folder, name, value):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        self.refused("must be a", ReMambaForCausalLM.from_pretrained, folder)

    def test_weights_that_are_integers(self, folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors["backbone.norm_f.weight"] = tensors["backbone.norm_f.weight"].to(torch.int8)
        save_file(tensors, file, {"format": "pt"})
        self.refused("I8 tensors", ReMambaForCausalLM.from_pretrained, folder)

    @pytest.mark.parametrize("problem", ["missing", "unexpected", "mismatched"])
    def test_tensor_that_is_not_as_it_should_be(self, folder, problem):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = "backbone.layers.1.mixer.A_log"
        if problem == "missing":
            del tensors[name]
        elif problem == "unexpected":
            name = "backbone.layers.1.mixer.extra"
            tensors[name] = torch.ones(2)
        else:
            tensors[name] = tensors[name][:-1].contiguous()
        save_file(tensors, file, {"format": "pt"})
        self.refused(name, ReMambaForCausalLM.from_pretrained, folder)

    def test_no_model_there(self, tmp_path):
        self.refused("config.json", ReMambaForCausalLM.from_pretrained, tmp_path)
        self.refused("no directory", ReMambaForCausalLM.from_pretrained, tmp_path / "none")
        self.refused("remamba-tiny", ReMambaForCausalLM.from_pretrained, "remamba-tony")


def test_left_padded_questions_on_a_memory_have_the_same_score_loss():
    model, documents, rows = tiny_model("mamba2"), tokens(2, 25), tokens(4, 9, seed=1)
    targets = torch.rand(4, 25, generator=torch.Generator().manual_seed(0)) < 0.2
    memory = model.read(documents, compression=FORMS["whole"])
    right = (torch.arange(9) < torch.tensor([[9], [6], [7], [9]])).long()
    left_rows = torch.stack([rows[i].roll(9 - int(right[i].sum())) for i in range(4)])
    a = model(rows, right, memory=memory, score_targets=targets).score_loss
    b = model(left_rows, right.flip(1), memory=memory, score_targets=targets).score_loss
    torch.testing.assert_close(a, b)


def test_compact_memory_serves_a_float32_model(tmp_path):
    model, asked = tiny_model("mamba"), tokens(2, 5, seed=1)
    memory = model.read(tokens(2, 20), compression=FORMS["whole"])
    memory.save(tmp_path / "m", torch.bfloat16)
    loaded = model.load_memory(tmp_path / "m")
    assert loaded.hidden.dtype == torch.bfloat16
    assert error(model(asked, memory=loaded).logits, model(asked, memory=memory).logits) < 0.05


def test_kept_follows_the_rows():
    model, ids = tiny_model("mamba2"), tokens(2, 30)
    out = model(ids, compression=FORMS["paper"])
    second = out.cache_params.select(torch.tensor([1]))
    assert second.batch_size == 1
    assert torch.equal(second.kept.index, out.kept.index[1:])
    beams = model.generate(
        ids, num_beams=3, num_return_sequences=2, max_new_tokens=3, do_sample=False, pad_token_id=0,
        compression=FORMS["paper"], return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(beams.kept.index, out.kept.index.repeat_interleave(2, 0))
    assert beams.cache_params is None


def test_a_dict_changes_the_models_own_settings():
    model = tiny_model("mamba", compression=CompressionConfig(length=0.5, num_kept=7))
    changed = model.resolve_method({"start": 0.1}).compression
    assert changed == CompressionConfig(start=0.1, length=0.5, num_kept=7)
