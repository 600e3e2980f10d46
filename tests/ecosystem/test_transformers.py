"""transformers' own hooks: padding, outputs, Trainer, generate, initial values."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from remamba import CompressionConfig, InputError, ReMambaConfig, ReMambaForCausalLM, ReMambaModel
from remamba.model.states import StateCache
from tests.exactness import BACKBONES, FORMS, tiny_model, tokens
from tests.tiny import tiny_tokenizer

STEPS = {
    "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True,
    "output_logits": True, "max_new_tokens": 5,
}  # fmt: skip
SPAN = CompressionConfig(length=0.5, num_kept=4)


def padded(ids, left, right):
    """ids (b, l) with so many pads on each side, and their mask."""
    x = torch.nn.functional.pad(ids, (left, right), value=1)
    return x, torch.nn.functional.pad(torch.ones_like(ids), (left, right))


class TestPadding:
    @pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0), (2, 3)])
    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_rows_that_nothing_fills_have_the_loss_and_the_places_of_the_unpadded(
        self, backbone, left, right
    ):
        model, ids = tiny_model(backbone), tokens(2, 9)
        wanted = model(ids, labels=ids, compression=False)
        x, mask = padded(ids, left, right)
        labels = x.masked_fill(mask == 0, -100)
        found = model(x, attention_mask=mask, labels=labels, compression=False)
        torch.testing.assert_close(found.loss, wanted.loss)
        assert found.logits.shape[:2] == x.shape
        torch.testing.assert_close(found.logits[:, left : left + 9], wanted.logits)
        assert torch.equal(found.labels[:, left + 1 : left + 9], ids[:, 1:])
        assert (found.labels[:, :left] == -100).all()
        states = ReMambaModel.forward(model, x, mask, compression=False).last_hidden_state
        assert states.shape[:2] == x.shape

    @pytest.mark.parametrize("form", ["paper", "whole", "append"])
    def test_two_stages_lose_nothing_by_padding_past_the_longest(self, form):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        options = {"compression": FORMS[form], "prompt_lengths": torch.tensor([15, 15])}
        wanted = model(ids, labels=ids, **options)
        x, mask = padded(ids, 0, 4)
        labels = x.masked_fill(mask == 0, -100)
        found = model(x, attention_mask=mask, labels=labels, **options)
        torch.testing.assert_close(found.loss, wanted.loss)

    def test_the_trainer_takes_a_collator_that_pads_to_a_multiple(self, tmp_path):
        tokenizer = tiny_tokenizer()
        rows = [{"input_ids": tokens(1, n)[0].tolist()} for n in (9, 12, 7, 12)]
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=64)
        arguments = TrainingArguments(
            str(tmp_path), report_to=[], use_cpu=True, max_steps=2, per_device_train_batch_size=2,
            save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(tiny_model("mamba2"), arguments, collator, rows)
        assert np.isfinite(trainer.train().training_loss)


class TestOutputs:
    @pytest.mark.parametrize("compression", [False, SPAN])
    def test_loss_and_logits_come_first_and_a_tuple_when_asked(self, compression):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        out = model(ids, labels=ids, compression=compression)
        fields = [name for name in type(out).__dataclass_fields__ if getattr(out, name) is not None]
        assert list(out) == fields
        assert out[0] is out.loss
        assert out[1] is out.logits
        values = model(ids, labels=ids, compression=compression, return_dict=False)
        assert type(values) is tuple
        assert torch.equal(values[1], out.logits)
        model.config.return_dict = False
        assert type(model(ids, compression=compression)) is tuple

    def test_outputs_that_there_are_not_are_refused(self):
        model, ids = tiny_model("mamba"), tokens(1, 9)
        with pytest.raises(InputError, match="a Mamba has no attentions"):
            model(ids, output_attentions=True)

    @pytest.mark.parametrize("compression", [None, SPAN.to_dict()])
    def test_predict_and_compute_metrics_get_the_logits(self, compression, tmp_path):
        model, ids = tiny_model("mamba", compression=compression), tokens(4, 20)
        rows = [{"input_ids": row, "labels": row} for row in ids]
        arguments = TrainingArguments(
            str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=2
        )
        seen = []

        def measure(prediction):
            seen.append(prediction.predictions.shape)
            return {"rows": len(prediction.predictions)}

        trainer = Trainer(model, arguments, eval_dataset=rows, compute_metrics=measure)
        found = trainer.predict(rows).predictions
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, model(ids, labels=ids).logits.detach(), atol=1e-5)
        assert trainer.evaluate()["eval_rows"] == 4
        assert seen == [found.shape, found.shape]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_init_weights_sets_all_that_construction_on_meta_left_open(backbone, tied):
    changes = {"tie_word_embeddings": tied}
    if tied:
        changes["hidden_size"] = 24
    config = tiny_model(backbone).config.to_dict() | changes
    with torch.device("meta"):
        empty = ReMambaForCausalLM(ReMambaConfig.from_dict(config))
    empty.to_empty(device="cpu")
    for parameter in empty.parameters():
        parameter.data.fill_(float("nan"))
    empty.init_weights()
    made = ReMambaForCausalLM(ReMambaConfig.from_dict(config))
    for (name, a), b in zip(empty.named_parameters(), made.parameters(), strict=True):
        assert torch.isfinite(a).all(), name
        if name.endswith(("A_log", ".D", "theta", "norm.weight", "norm_f.weight", "conv1d.bias")):
            assert torch.equal(a, b), name
        else:
            assert 0.5 * b.abs().max() < a.abs().max() < 2 * b.abs().max(), name
    key, query = empty.compressor.key_proj, empty.compressor.query_proj
    assert all(map(torch.equal, key.state_dict().values(), query.state_dict().values()))
    before = made.backbone.embeddings.weight.clone()
    made.init_weights()
    assert torch.equal(made.backbone.embeddings.weight, before)


class TestGenerate:
    @pytest.mark.parametrize("compression", [False, SPAN])
    def test_embeddings_are_read_and_the_ids_returned(self, compression):
        model, ids, other = tiny_model("mamba"), tokens(2, 20), tokens(2, 20, seed=5)
        embeds = model.get_input_embeddings()(other)
        both = model.generate(ids, inputs_embeds=embeds, compression=compression, **STEPS)
        alone = model.generate(inputs_embeds=embeds, compression=compression, **STEPS)
        read = model.generate(other, compression=compression, **STEPS)
        for a, b, c in zip(both.logits, alone.logits, read.logits, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c)
        assert torch.equal(both.sequences, torch.cat([ids, alone.sequences], dim=1))

    def test_both_are_moved_when_the_padding_is_on_the_right(self):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
        embeds = model.get_input_embeddings()(ids)
        wanted = model.generate(ids, attention_mask=mask, **STEPS).sequences
        found = model.generate(ids, inputs_embeds=embeds, attention_mask=mask, **STEPS).sequences
        assert torch.equal(found, wanted)

    @pytest.mark.parametrize("width", [17, 23])
    def test_a_mask_of_another_width_is_refused(self, width):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        mask = torch.ones(2, width, dtype=torch.long)
        for name, x in (("input_ids", ids), ("inputs_embeds", model.backbone.embeddings(ids))):
            with pytest.raises(InputError, match=rf"mask is \(2, {width}\), the input is \(2, 20"):
                model.generate(**{name: x}, attention_mask=mask, **STEPS)

    def test_other_silent_readings_are_refused(self):
        model, ids = tiny_model("mamba"), tokens(2, 20)
        embeds = model.backbone.embeddings(ids)
        with pytest.raises(InputError, match="beside embeddings"):
            model.generate(ids[:, 1:], inputs_embeds=embeds, **STEPS)
        with pytest.raises(InputError, match="without the embeddings"):
            model.generate(inputs_embeds=embeds, use_cache=False, compression=False, **STEPS)


@pytest.mark.parametrize("backbone", BACKBONES)
class TestContinuing:
    """Two calls on one cache equal one uninterrupted text."""

    def first(self, model, ids, mask=None, compression=False, **changes):
        return model.generate(
            ids, attention_mask=mask, compression=compression, **{**STEPS, **changes}
        )

    def test_new_tokens_alone_and_the_whole_text(self, backbone):
        model, ids, more = tiny_model(backbone), tokens(2, 12), tokens(2, 7, seed=4)
        out = self.first(model, ids)
        whole = torch.cat([out.sequences, more], dim=1)
        wanted = self.first(model, whole)
        for given in (more, whole):
            again = model.generate(given, cache_params=out.cache_params.clone(), **STEPS)
            for a, b in zip(again.logits, wanted.logits, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert torch.equal(again.sequences[:, -5:], wanted.sequences[:, -5:])
            third = tokens(2, 3, seed=6)
            last = model.generate(third, cache_params=again.cache_params, **STEPS)
            text = torch.cat([whole, again.sequences[:, -5:], third], dim=1)
            right = model(text, compression=False).logits[:, -1]
            torch.testing.assert_close(last.logits[0], right, rtol=1e-5, atol=1e-5)

    def test_of_padded_rows_and_in_one_forward(self, backbone):
        model, ids, more = tiny_model(backbone), tokens(2, 12), tokens(2, 7, seed=4)
        mask = (torch.arange(12) < torch.tensor([[12], [8]])).long()
        out = self.first(model, ids, mask)
        new = out.sequences[:, 12:]
        rows = [torch.cat([ids[i, : mask[i].sum()], new[i], more[i]]) for i in range(2)]
        step = model(more, cache_params=out.cache_params.clone())
        for row, logits in zip(rows, step.logits, strict=True):
            right = model(row[None], compression=False).logits[0, -7:]
            torch.testing.assert_close(logits, right, rtol=1e-5, atol=1e-5)
        again = model.generate(
            torch.cat([out.sequences, more], dim=1),
            attention_mask=torch.cat([mask.flip(1), torch.ones(2, 12, dtype=torch.long)], dim=1),
            cache_params=out.cache_params,
            **STEPS,
        )
        torch.testing.assert_close(again.logits[0], step.logits[:, -1], rtol=1e-5, atol=1e-5)

    def test_after_two_stages_and_from_a_file(self, backbone, tmp_path):
        model, ids, more = tiny_model(backbone), tokens(1, 20), tokens(1, 7, seed=4)
        out = self.first(model, ids, compression=SPAN)
        wanted = model(
            torch.cat([out.sequences, more], dim=1), prompt_lengths=torch.tensor([20]),
            compression=SPAN,
        ).logits[:, -1]  # fmt: skip
        out.cache_params.save(tmp_path / "state")
        loaded = StateCache.load(tmp_path / "state")
        again = model.generate(more, cache_params=loaded, **STEPS)
        torch.testing.assert_close(again.logits[0], wanted, rtol=1e-5, atol=1e-5)
        assert out.kept is not None
        assert again.kept is None

    def test_what_cannot_go_on_is_refused_and_loses_nothing(self, backbone):
        model, ids, more = tiny_model(backbone), tokens(2, 12), tokens(2, 7, seed=4)
        out = self.first(model, ids)
        cache = out.cache_params
        for options in ({"compression": {"num_kept": 2}}, {"question_lengths": [3, 3]}):
            options = {k: v if k == "compression" else torch.tensor(v) for k, v in options.items()}
            with pytest.raises(InputError, match="already holds a text"):
                model.generate(more, cache_params=cache, **options, **STEPS)
        right = model(torch.cat([out.sequences, more], dim=1), compression=False).logits[:, -1]
        found = model.generate(more, cache_params=cache, **STEPS).logits[0]
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)

    def test_a_row_that_ended_before_the_others_does_not_go_on(self, backbone):
        model, ids, more = tiny_model(backbone), tokens(2, 12), tokens(2, 7, seed=4)
        end = int(self.first(model, ids).sequences[0, 13])
        out = self.first(model, ids, eos_token_id=end)
        if out.sequences.shape[1] < 17 or end in out.sequences[1, 12:-1].tolist():
            pytest.skip("both rows end at once")
        with pytest.raises(InputError, match="row 0: it ended before other rows"):
            model.generate(more, cache_params=out.cache_params.clone(), **STEPS)
        one = out.cache_params.select(torch.tensor([1]))
        found = model.generate(more[1:], cache_params=one, **STEPS).logits[0]
        whole = torch.cat([out.sequences, more], dim=1)[1:]
        right = model(whole, compression=False).logits[:, -1]
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
