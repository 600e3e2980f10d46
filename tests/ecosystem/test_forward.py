"""transformers' options of forward: hidden states, logits to keep, labels, and what is refused."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, Trainer, TrainingArguments

from remamba import InputError, ReMambaModel
from tests.exactness import BACKBONES, FORMS, VOCAB, questions, tiny_model, tokens

PLAIN = {"compression": False}


def transformers_mamba():
    """transformers' Mamba with the weights of our tiny one."""
    config = MambaConfig(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, state_size=8)
    theirs, ours = MambaForCausalLM(config).eval(), tiny_model("mamba")
    own = {k: v for k, v in ours.state_dict().items() if "adaption" not in k and "compr" not in k}
    theirs.load_state_dict(own)
    return theirs


class TestHiddenStates:
    def test_are_those_of_transformers_mamba(self, assert_close):
        ids = tokens(2, 20)
        wanted = transformers_mamba()(ids, output_hidden_states=True)
        found = tiny_model("mamba")(ids, output_hidden_states=True, **PLAIN)
        assert len(found.hidden_states) == len(wanted.hidden_states) == 3
        for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert_close(a, b)

    @pytest.mark.parametrize("form", [None, *FORMS])
    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_are_of_the_last_stage_and_change_no_bit(self, backbone, form):
        model, ids = tiny_model(backbone), tokens(2, 20)
        mask = (torch.arange(20) >= torch.tensor([[0], [4]])).long()
        options = {"compression": FORMS.get(form, False), "attention_mask": mask}
        options |= questions(form, 5, 3) if form else {}
        plain = model(ids, **options)
        found = model(ids, output_hidden_states=True, **options)
        assert torch.equal(found.logits, plain.logits)
        assert [len(x[0]) for x in found.hidden_states] == 3 * [found.logits.shape[1]]
        assert torch.equal(model.lm_head(found.hidden_states[-1])[0], found.logits[0])
        last = ReMambaModel.forward(model, ids, output_hidden_states=True, **options)
        for a, b in zip(last.hidden_states, found.hidden_states, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(last.last_hidden_state, last.hidden_states[-1])
        pieces = model(ids, output_hidden_states=True, piece_length=7, **options)
        for a, b in zip(pieces.hidden_states, found.hidden_states, strict=True):
            # in the second row pads stand in front
            for x, y in ((a[0], b[0]), (a[1, 8:], b[1, 8:])):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)

    def test_behind_a_text_with_a_token_unread(self):
        model, ids, more = tiny_model("mamba"), tokens(2, 12), tokens(2, 7, seed=4)
        out = model.generate(
            ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **PLAIN
        )
        whole = torch.cat([out.sequences, more], dim=1)
        wanted = model(whole, output_hidden_states=True, **PLAIN).hidden_states
        found = model(more, cache_params=out.cache_params, output_hidden_states=True).hidden_states
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b[:, -7:], rtol=1e-5, atol=1e-5)

    def test_are_on_the_way_of_the_gradient(self):
        model, ids = tiny_model("mamba2").train(), tokens(2, 12)
        out = model(ids, output_hidden_states=True, compression=FORMS["paper"])
        for x in out.hidden_states:
            x.retain_grad()
        out.logits.sum().backward()
        assert all(x.grad is not None and x.grad.any() for x in out.hidden_states)

    def test_by_the_configuration_and_in_tuples(self):
        model, ids = tiny_model("mamba"), tokens(1, 9)
        model.config.output_hidden_states = True
        out = model(ids, **PLAIN)
        assert len(out.hidden_states) == 3
        assert model(ids, output_hidden_states=False, **PLAIN).hidden_states is None
        values = model(ids, return_dict=False, **PLAIN)
        assert torch.equal(values[2][0], out.hidden_states[0])


class TestLogitsToKeep:
    @pytest.mark.parametrize("keep", [1, 5, 20, 100, torch.tensor([18, 19]), torch.tensor([-1, 3])])
    def test_as_transformers_mamba_does(self, keep, assert_close):
        ids = tokens(2, 20)
        wanted = transformers_mamba()(ids, logits_to_keep=keep).logits
        assert_close(tiny_model("mamba")(ids, logits_to_keep=keep, **PLAIN).logits, wanted)

    @pytest.mark.parametrize("form", FORMS)
    def test_positions_are_those_of_the_spliced_sequence(self, form):
        model, ids = tiny_model("mamba2"), tokens(2, 20)
        options = {"compression": FORMS[form], **questions(form, 5, 5)}
        every = model(ids, **options).logits
        found = model(ids, logits_to_keep=torch.tensor([0, 4]), **options).logits
        torch.testing.assert_close(found, every[:, [0, 4]])
        found = model(ids, logits_to_keep=500, **options).logits
        assert torch.equal(found, every)

    def test_more_than_there_are_behind_a_token_unread(self):
        model, more = tiny_model("mamba"), tokens(2, 7, seed=4)
        out = model.generate(
            tokens(2, 12), max_new_tokens=3, do_sample=False, return_dict_in_generate=True, **PLAIN
        )
        every = model(more, cache_params=out.cache_params.clone()).logits
        for keep in (6, 7, 8, 100):
            found = model(more, cache_params=out.cache_params.clone(), logits_to_keep=keep).logits
            assert torch.equal(found, every[:, -keep:])

    @pytest.mark.parametrize(
        ("keep", "said"),
        [
            (-1, "0 or more"),
            (1.5, "0 or more"),
            (torch.tensor([0.5]), r"shape \(1,\) and torch.float32"),
            (torch.ones(2, 20, dtype=torch.bool), r"shape \(2, 20\)"),
            (torch.tensor([3, 20]), "names the position 20; .* has 20"),
            (torch.tensor([-21]), "names the position -21"),
        ],
    )
    def test_what_it_cannot_be(self, keep, said):
        with pytest.raises(InputError, match=said):
            tiny_model("mamba")(tokens(2, 20), logits_to_keep=keep, **PLAIN)


class TestLabels:
    @pytest.mark.parametrize("form", [None, "paper", "whole"])
    def test_shifted_ones_are_the_same_labels(self, form):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        labels = torch.where(torch.arange(20) < 14, -100, ids)
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        options = {"compression": FORMS.get(form, False)}
        wanted = model(ids, labels=labels, **options)
        found = model(ids, shift_labels=shifted, **options)
        assert torch.equal(found.loss, wanted.loss)
        assert torch.equal(found.labels, wanted.labels)

    def test_shifted_ones_as_transformers_mamba_reads_them(self, assert_close):
        ids = tokens(2, 20)
        shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        wanted = transformers_mamba()(ids, labels=ids, shift_labels=shifted).loss
        assert_close(tiny_model("mamba")(ids, shift_labels=shifted, **PLAIN).loss, wanted)
        with pytest.raises(InputError, match="last column of shift_labels must be -100"):
            tiny_model("mamba")(ids, shift_labels=ids)

    def test_the_number_of_items_divides_the_sum(self, assert_close):
        ids = tokens(2, 20)
        wanted = transformers_mamba()(ids, labels=ids, num_items_in_batch=100).loss
        found = tiny_model("mamba")(ids, labels=ids, num_items_in_batch=100, **PLAIN).loss
        assert_close(found, wanted)

    @pytest.mark.parametrize("compression", [False, FORMS["paper"].to_dict()])
    def test_accumulated_batches_weigh_tokens(self, compression, tmp_path):
        """Two batches of one row each, with 3 and 15 labels, step as one batch of both."""
        ids = tokens(2, 20)
        labels = torch.where(torch.arange(20) < torch.tensor([[17], [5]]), -100, ids)
        rows = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
        weights = []
        for size, steps in ((2, 1), (1, 2)):
            own = {"method": "plain"} if compression is False else {"compression": compression}
            model = tiny_model("mamba", **own)
            arguments = TrainingArguments(
                str(tmp_path), report_to=[], use_cpu=True, max_steps=1, save_strategy="no",
                per_device_train_batch_size=size, gradient_accumulation_steps=steps,
                optim="sgd", learning_rate=1.0, max_grad_norm=0,
            )  # fmt: skip
            before = model.lm_head.weight.detach().clone()
            Trainer(model, arguments, train_dataset=rows).train()
            weights.append(model.lm_head.weight.detach() - before)
        assert weights[0].abs().max() > 1e-2
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


class TestCheckpointing:
    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_each_layer_is_recomputed_and_the_gradient_stays(self, backbone):
        ids, found = tokens(2, 20), []
        for every in (False, True):
            model = tiny_model(backbone).train()
            if every:
                model.gradient_checkpointing_enable()
            calls = []
            for block in model.backbone.layers:
                block.mixer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            model(ids, labels=ids, compression=FORMS["paper"]).loss.backward()
            assert len(calls) == (8 if every else 4)
            found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)
        model.gradient_checkpointing_disable()
        assert not any(block.gradient_checkpointing for block in model.backbone.layers)

    def test_the_reentrant_way_is_refused(self):
        with pytest.raises(InputError, match="lose the gradient of the scores"):
            tiny_model("mamba").gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (tokens(9), r"shape \(9,\) of input_ids is not \(rows, tokens\); one row is input_ids\[N"),
        ([[1, 2, 3]], r"input_ids is a list; give a tensor .* torch.tensor\(\[\[...\]\]\)"),
        (torch.zeros(0, 9, dtype=torch.long), r"input_ids is \(0, 9\): it has no rows"),
        (torch.zeros(1, 0, dtype=torch.long), "is empty"),
    ],
)
def test_inputs_that_are_no_rows_are_refused(ids, said):
    model = tiny_model("mamba")
    for call in (model, model.read, lambda x: model.generate(x, max_new_tokens=2)):
        with pytest.raises(InputError, match=said):
            call(ids)
