"""The USTokenizer with a frozen text model: recorded batches, the attached model, losses, generation, errors."""

import copy

import pytest
import torch
from transformers import AutoModel

from dualspeech import UsTokenizerForUnderstanding, UsTokenizerModel
from dualspeech.training.data_collator_us_tokenizer import UsTokenizerCollator
from tests.fixture_checks import check
from tests.modeling.us_tokenizer_cases import (
    recorded_full,
    recorded_tokenizer,
    tiny_batch,
    tiny_text_model,
    tiny_understanding,
)

GRADIENTS = {
    "downsampling_conv.conv.weight": "us_tokenizer.codec_encoder.downsample.weight",
    "llama_conv.conv.weight": "adapter.conv.weight",
    "codec_decoder.conv2.conv.weight": "us_tokenizer.codec_decoder.conv_out.weight",
}
LOSSES = {
    "loss": "loss",
    "llama_loss": "understanding_loss",
    "commitment_loss": "commitment_loss",
    "recon_loss": "reconstruction_loss",
    "perplexity": "perplexity",
}


def recorded_rows(number, tensors, meta):
    case = meta["cases"]["batches"][number]
    waveforms = [tensors[f"batch{number}.waveform.{i}"].numpy() for i in range(len(case["samples"]))]
    return [
        {"audio": audio, "task": task, "text": text, "question": question}
        for audio, task, text, question in zip(waveforms, case["task"], case["text"], case["Q"], strict=True)
    ]


def recorded_batch(model, number, tensors, meta):
    collator = UsTokenizerCollator(model.config, recorded_tokenizer(), max_text_length=300, padding="middle")
    return collator(recorded_rows(number, tensors, meta))


@pytest.mark.parametrize("number", [0, 1])
def test_batches_equal_the_recorded_ones(number):
    model, tensors, meta = recorded_full()
    name = f"batch{number}"
    batch = recorded_batch(model, number, tensors, meta)
    check(batch["attention_mask"], f"{name}.attention_mask", tensors, meta)
    check(batch["labels"], f"{name}.labels", tensors, meta)
    with torch.no_grad():
        speech = model.us_tokenizer(batch["input_features"], batch["num_samples"])
        embeds = model._inputs_embeds(batch["input_ids"], speech.quantized, speech.codes_mask)
    check(embeds, f"{name}.inputs_embeds", tensors, meta)

    output = model(**batch)
    output.loss.backward()
    for recorded, ours in LOSSES.items():
        check(getattr(output, ours).detach(), f"{name}.eval.{recorded}", tensors, meta)
    for recorded, ours in GRADIENTS.items():
        check(model.get_parameter(ours).grad, f"{name}.grad.{recorded}", tensors, meta)

    output = model.train()(**batch)
    for recorded, ours in LOSSES.items():
        check(getattr(output, ours).detach(), f"{name}.train.{recorded}", tensors, meta)
    quantizer = model.us_tokenizer.quantizer
    check(quantizer.embed.T, f"{name}.train.embed", tensors, meta)
    check(quantizer.embed_avg.T, f"{name}.train.embed_avg", tensors, meta)
    check(quantizer.cluster_size, f"{name}.train.cluster_size", tensors, meta)


def test_greedy_text_equals_the_recorded_one():
    model, tensors, meta = recorded_full()
    collator = UsTokenizerCollator(model.config, recorded_tokenizer())
    batch = collator.for_generation(recorded_rows(1, tensors, meta))
    ids = model.generate(**batch, max_new_tokens=10, do_sample=False, pad_token_id=320)
    check(ids, "batch1.generated_ids", tensors, meta)


def understanding_batch(model, num_samples, answer_lengths, padding="right"):
    """Random texts around the speech: 3 ids in front, 2 behind, then the answer."""
    config = model.config
    features, num_samples = tiny_batch(config.us_tokenizer_config, num_samples)
    sequences, targets = [], []
    for samples, length in zip(num_samples.tolist(), answer_lengths, strict=True):
        speech = [config.speech_placeholder_id] * config.us_tokenizer_config.num_codes(samples)
        prompt = [1, *torch.randint(3, 31, (2,)).tolist(), *speech, *torch.randint(3, 31, (2,)).tolist()]
        answer = torch.randint(3, 31, (length,)).tolist()
        sequences.append(prompt + answer)
        targets.append([-100] * len(prompt) + answer)
    width = max(map(len, sequences))
    ids, labels = torch.zeros(len(sequences), width, dtype=torch.long), torch.full((len(sequences), width), -100)
    mask = torch.zeros_like(ids)
    for row, (sequence, target) in enumerate(zip(sequences, targets, strict=True)):
        place = slice(len(sequence)) if padding == "right" else slice(width - len(sequence), width)
        ids[row, place], labels[row, place] = torch.tensor(sequence), torch.tensor(target)
        mask[row, place] = 1
    return {
        "input_features": features,
        "num_samples": num_samples,
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
    }


def row_of(batch, row):
    valid = batch["attention_mask"][row].bool()
    single = {key: value[row, None] for key, value in batch.items()}
    return {**single, **{key: single[key][:, valid] for key in ("input_ids", "attention_mask", "labels")}}


def test_a_batch_equals_its_single_rows_and_the_loss_its_parts():
    model = tiny_understanding(understanding_loss_weight=2.5).eval()
    model.us_tokenizer.quantizer.embed.mul_(0.1)  # of the size of the vectors: no code is chosen by rounding
    batch = understanding_batch(model, [9600, 16000, 700], [4, 1, 6])
    output = model(**batch)
    understanding = 0
    for row, length in enumerate([4, 1, 6]):
        single = model(**row_of(batch, row))
        understanding += single.understanding_loss * length / 11
        valid = batch["attention_mask"][row].bool()
        torch.testing.assert_close(output.logits[row, valid], single.logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.understanding_loss, understanding)
    total = output.commitment_loss + 45 * output.reconstruction_loss + 2.5 * output.understanding_loss
    torch.testing.assert_close(output.loss, total)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_rows_one_at_a_time_with_the_counts_of_all_add_up_to_the_batch(mask_padding):
    model = tiny_understanding(understanding_loss_weight=2.5, us_tokenizer={"mask_padding": mask_padding}).eval()
    model.us_tokenizer.quantizer.embed.mul_(0.1)
    samples = [9600, 16000, 700] if mask_padding else [9600, 9600, 9600]
    batch = understanding_batch(model, samples, [4, 1, 6])
    singles = [row_of(batch, row) for row in range(3)]
    counts = [model.loss_item_counts(**single) for single in singles]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert total == model.loss_item_counts(**batch)
    assert total["understanding_loss"] == 11
    loss = sum(model(**single, num_items_in_batch=total).loss for single in singles)
    torch.testing.assert_close(loss, model(**batch).loss)
    torch.testing.assert_close(loss, model(**batch, num_items_in_batch=total).loss)


def test_without_text_the_loss_is_that_of_the_tokenizer():
    model = tiny_understanding().eval()
    features, num_samples = tiny_batch(model.config.us_tokenizer_config, [9600, 16000])
    output, expected = model(features, num_samples), model.us_tokenizer(features, num_samples)
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.understanding_loss is None and output.logits is None
    without_labels = understanding_batch(model, [9600], [3])
    without_labels.pop("labels")
    output = model(**without_labels)
    assert output.loss is None and output.logits is not None


def test_weight_zero_needs_no_text_model():
    model = tiny_understanding(understanding_loss_weight=0.0).eval()
    batch = understanding_batch(model, [9600], [3])
    with_text = model(**batch)
    assert with_text.understanding_loss is not None
    without = UsTokenizerForUnderstanding(model.config).eval()
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(without(**batch).loss, with_text.loss)


def test_the_text_model_is_neither_saved_nor_trained_and_follows_to(tmp_path):
    model = tiny_understanding()
    text_ids = {id(parameter) for parameter in model.text_model.parameters()}
    assert not text_ids & {id(parameter) for parameter in model.parameters()}
    assert not any("text_model" in key or "lm_head" in key for key in model.state_dict())
    model.train()
    assert not model.text_model.training
    assert not any(parameter.requires_grad for parameter in model.text_model.parameters())
    assert copy.deepcopy(model).text_model is not model.text_model
    model.to(torch.float64)
    assert model.text_model.dtype == torch.float64
    model.float()

    model.save_pretrained(tmp_path)
    loaded, info = UsTokenizerForUnderstanding.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.text_model is None and type(AutoModel.from_pretrained(tmp_path)) is UsTokenizerForUnderstanding
    loaded.attach_text_model(model.text_model)
    batch = understanding_batch(model, [9600, 16000], [3, 2])
    torch.testing.assert_close(loaded.eval()(**batch).loss, model.eval()(**batch).loss)
    tokenizer, info = UsTokenizerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(tokenizer.quantizer.embed, model.us_tokenizer.quantizer.embed)


def test_text_model_is_loaded_by_name(tmp_path):
    model = tiny_understanding()
    model.text_model.save_pretrained(tmp_path / "text")
    expected = model(**understanding_batch(model.eval(), [9600], [3])).understanding_loss
    torch.manual_seed(0)
    other = UsTokenizerForUnderstanding(model.config).eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="`text_model_name_or_path` is not set"):
        other.load_text_model()
    other.load_text_model(tmp_path / "text", dtype=torch.float32)
    assert other.config.text_model_name_or_path == str(tmp_path / "text")
    other.load_text_model()
    assert other.text_model is not model.text_model
    batch = understanding_batch(model, [9600], [3])
    torch.testing.assert_close(other(**batch).loss, model(**batch).loss)
    assert expected.isfinite()


def test_training_reaches_adapter_and_codec_but_not_encoder_nor_text_model():
    model = tiny_understanding().train()
    before = {key: value.clone() for key, value in model.text_model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**understanding_batch(model, [9600, 16000], [3, 2])).loss.backward()
    optimizer.step()
    without_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert without_gradient == {key for key, _ in model.named_parameters() if key.startswith("us_tokenizer.encoder.")}
    assert all(torch.equal(value, before[key]) for key, value in model.text_model.state_dict().items())
    unfrozen = tiny_understanding(freeze_encoder=False).train()
    unfrozen(**understanding_batch(unfrozen, [9600], [3])).loss.backward()
    assert unfrozen.us_tokenizer.encoder.conv1.weight.grad is not None


def test_bf16_text_model_beside_fp32_tokenizer():
    model = tiny_understanding()
    model.attach_text_model(tiny_text_model().to(torch.bfloat16))
    output = model(**understanding_batch(model, [9600], [3]))
    assert model.text_model.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert model.adapter.linear.weight.grad.isfinite().all()


def test_greedy_generation_of_a_batch_equals_single_rows():
    model = tiny_understanding().eval()
    batch = understanding_batch(model, [9600, 16000, 700], [1, 1, 1], padding="left")
    batch.pop("labels")
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = model.generate(**batch, **settings)
    assert ids.shape == (3, 6)
    for row in range(3):
        valid = batch["attention_mask"][row].bool()
        single = {key: value[row, None] for key, value in batch.items() if key != "attention_mask"}
        single["input_ids"] = single["input_ids"][:, valid]
        assert torch.equal(model.generate(**single, **settings)[0], ids[row])


def test_bad_inputs_are_refused():
    model = tiny_understanding().eval()
    batch = understanding_batch(model, [9600, 16000], [3, 2])
    wrong = {**batch, "input_ids": batch["input_ids"].clone()}
    wrong["input_ids"][0, 3] = 5
    with pytest.raises(ValueError, match=r"have \[14, 25\] speech placeholders \(id -1\).*\[15, 25\] codes"):
        model(**wrong)
    with pytest.raises(ValueError, match="labels: given without `input_ids`"):
        model(batch["input_features"], labels=batch["labels"])
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(**{key: value for key, value in batch.items() if key != "labels"})
    with pytest.raises(ValueError, match="input_ids: needed"):
        model.generate(batch["input_features"])
    alone = UsTokenizerForUnderstanding(model.config)
    with pytest.raises(ValueError, match="labels: no text model is attached"):
        alone(**batch)
    with pytest.raises(ValueError, match="generate: no text model is attached"):
        alone.generate(batch["input_features"][:1], input_ids=batch["input_ids"][1:])
    with pytest.raises(ValueError, match=r"embeddings are 16 wide, `text_config.hidden_size` is 20"):
        alone.attach_text_model(tiny_text_model(hidden_size=16))
    with pytest.raises(Exception, match="`understanding_loss_weight` is -1"):
        type(model.config)(understanding_loss_weight=-1.0)


def test_from_parts_keeps_weights_and_running_models():
    model = tiny_understanding()
    us_tokenizer, text_model = model.us_tokenizer, model.text_model
    before = text_model.config._attn_implementation
    batch = understanding_batch(model, [9600, 16000], [3, 2])
    other = UsTokenizerForUnderstanding.from_parts(us_tokenizer, text_model, understanding_loss_weight=3.0)
    assert text_model.config._attn_implementation == before and other.text_model is text_model
    assert other.config.understanding_loss_weight == 3.0
    other.adapter.load_state_dict(model.adapter.state_dict())
    torch.testing.assert_close(other.eval()(**batch).understanding_loss, model.eval()(**batch).understanding_loss)
    assert not other.us_tokenizer.encoder.conv1.weight.requires_grad
