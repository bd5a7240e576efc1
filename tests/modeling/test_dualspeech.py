"""DualSpeechForConditionalGeneration: recorded outputs, losses, Chain-of-Condition, loading, backbones."""

import copy
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForTextToWaveform

from dualspeech.configuration.configuration_dualspeech import DualSpeechConfig
from dualspeech.modeling.modeling_dualspeech import DualSpeechForConditionalGeneration
from tests.fixture_checks import FIXTURES, check, load
from tests.modeling.dualspeech_cases import (
    BACKBONES,
    fixture_inputs,
    fixture_model,
    tiny_config,
    tiny_model,
    training_batch,
)


@pytest.fixture(scope="module")
def released():
    state, tensors, meta = load("dualspeech_lm")
    return fixture_model(state, meta), tensors, meta


@pytest.mark.parametrize(
    ("batch", "condition", "branch"),
    [
        ("speech", "prompt", "question"),
        ("speech", "answer", "answer"),
        ("speech", "full", "full"),
        ("text", "full", "full"),
    ],
)
def test_losses_equal_the_released_model(released, batch, condition, branch):
    model, tensors, meta = released
    output = model(**fixture_inputs(tensors, batch), condition=condition, output_hidden_states=True)
    language_loss = output.text_loss if batch == "text" else output.semantic_loss
    assert (output.semantic_loss if batch == "text" else output.text_loss) is None
    check(output.loss, f"{batch}.{branch}.loss", tensors, meta)
    check(language_loss, f"{batch}.{branch}.lm_loss", tensors, meta)
    check(output.acoustic_loss, f"{batch}.{branch}.acoustic_loss", tensors, meta)
    check(output.logits, f"{batch}.logits", tensors, meta)
    check(output.hidden_states[-1], f"{batch}.hidden", tensors, meta)
    labels = fixture_inputs(tensors, batch)["acoustic_labels"]
    right = (output.acoustic_logits.argmax(-1) == labels)[labels != -100].float().mean()
    check(right, f"{batch}.{branch}.acoustic_accuracy", tensors, meta)


def test_gradients_equal_the_released_model(released):
    model, tensors, meta = released
    model = copy.deepcopy(model)
    model(**fixture_inputs(tensors, "speech"), condition="answer").loss.backward()
    layer = model.acoustic_model.model.layers[0].self_attn
    gradients = {
        "speaker_module.weight": model.speaker_projector.weight.grad,
        "llama_decoder_proj.fc1.weight": model.acoustic_projector.linear_1.weight.grad,
        "model.layers.0.self_attn.qkv_proj.weight": model.language_model.model.layers[
            0
        ].self_attn.qkv_proj.weight.grad,
        "model.embed_tokens.weight": model.get_input_embeddings().weight.grad,
        "lm_decoder.transformer.h.0.attn.c_attn.weight": torch.cat(
            [p.weight.grad for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
        ),
    }
    for name, gradient in gradients.items():
        check(gradient, f"speech.answer.grad.{name}", tensors, meta)


def test_long_rotary_factors_equal_the_released_model():
    state, tensors, meta = load("dualspeech_lm_longrope")
    model = fixture_model(state, meta)
    for length in (20, 32, 33, 44):
        output = model(input_ids=tensors["input_ids"][:, :length], output_hidden_states=True, use_cache=False)
        check(output.hidden_states[-1], f"hidden.{length}", tensors, meta)
        check(output.logits, f"logits.{length}", tensors, meta)


def test_released_sizes_have_the_released_layout():
    from dualspeech.modeling.conversion.convert_dualspeech_to_hf import convert_state

    layout = json.loads((FIXTURES / "layouts" / "dualspeech_merged.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in layout["keys"]}
        converted = convert_state(state)
        model = DualSpeechForConditionalGeneration(DualSpeechConfig.official_parity(acoustic_config={}))
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == ours


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saving_and_loading_loses_nothing(backbone, tmp_path):
    model = tiny_model(backbone)
    model.save_pretrained(tmp_path)
    batch = training_batch(model.config)
    expected = model(**batch)
    for auto in (AutoModel, AutoModelForMultimodalLM, AutoModelForTextToWaveform):
        again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        torch.testing.assert_close(again(**batch).loss, expected.loss, rtol=0, atol=0)
    head, table = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is table) == model.config.text_config.tie_word_embeddings
    assert again.acoustic_model.lm_head.weight is not again.acoustic_model.model.embed_tokens.weight


def test_from_text_model_keeps_the_text_model(tmp_path):
    from dualspeech.processing.tokenization_dualspeech import extend_tokenizer
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = copy.deepcopy(tiny_config("qwen3").text_config)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(3)
    text_model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, len(tokenizer), (2, 9))
    expected = text_model(ids).logits
    text_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="<audio>"):
        DualSpeechForConditionalGeneration.from_text_model(text_model, tokenizer)
    extend_tokenizer(tokenizer, 13)
    model = DualSpeechForConditionalGeneration.from_text_model(
        str(tmp_path),
        tokenizer,
        semantic_codebook_size=13,
        speaker_embedding_size=6,
        acoustic_config=tiny_config().acoustic_config.to_dict(),
    ).eval()
    torch.testing.assert_close(model(ids).logits[..., : expected.shape[-1]], expected, rtol=0, atol=1e-6)
    assert model.config.semantic_token_offset == tokenizer.convert_tokens_to_ids("<a_0>")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_mixed_batches_give_the_means_of_their_rows():
    """Each part is the mean over its own targets, whatever else is in the batch."""
    model = tiny_model("llama")
    batch = training_batch(model.config, ("asr", "tts", "vc", "sqa"))
    output = model(**batch)
    parts = {"text_loss": (0, 3), "semantic_loss": (1, 2), "acoustic_loss": (1, 2)}
    for name, rows in parts.items():
        alone = [model(**{key: value[[row]] for key, value in batch.items()}) for row in rows]
        counted = batch["acoustic_labels"] if name == "acoustic_loss" else batch["labels"]
        counts = [(counted[row] != -100).sum() for row in rows]
        expected = sum(getattr(o, name) * c for o, c in zip(alone, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(getattr(output, name), expected)
    torch.testing.assert_close(output.loss, output.text_loss + output.semantic_loss + output.acoustic_loss)


def test_loss_weights_and_their_sum():
    batch = training_batch(tiny_config())
    plain = tiny_model("llama")(**batch)
    weighted = tiny_model("llama", text_loss_weight=0.5, semantic_loss_weight=0, acoustic_loss_weight=3)(**batch)
    torch.testing.assert_close(weighted.loss, 0.5 * plain.text_loss + 3 * plain.acoustic_loss)
    torch.testing.assert_close(weighted.semantic_loss, plain.semantic_loss)


def test_acoustic_loss_on_understanding_rows_is_a_switch():
    batch = training_batch(tiny_config(), ("asr", "ser"))
    silent = tiny_model("llama")(**batch)
    assert silent.acoustic_loss is None
    torch.testing.assert_close(silent.loss, silent.text_loss)
    silent.loss.backward()  # the acoustic parts stay in the graph, as distributed training needs
    speaking = tiny_model("llama", acoustic_on_understanding=True)(**batch)
    assert speaking.acoustic_loss > 0
    torch.testing.assert_close(speaking.loss, speaking.text_loss + speaking.acoustic_loss)


@pytest.mark.parametrize("condition", ["prompt", "answer", "full"])
def test_left_and_right_padding_agree(condition):
    model = tiny_model("phi3")
    batch = training_batch(model.config, ("tts", "vc", "sc"))
    lengths = batch["attention_mask"].sum(1).tolist()
    moved = {
        key: torch.stack([row.roll(len(row) - n) for row, n in zip(value, lengths, strict=True)])
        if key in ("input_ids", "attention_mask", "labels", "prompt_mask")
        else value
        for key, value in batch.items()
    }
    positions = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    right, left = model(**batch, condition=condition), model(**moved, position_ids=positions, condition=condition)
    torch.testing.assert_close(left.acoustic_loss, right.acoustic_loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left.semantic_loss, right.semantic_loss, rtol=1e-4, atol=1e-4)


def test_chain_of_condition_frequencies_and_eligibility():
    model = tiny_model("llama", coc_probabilities=(0.2, 0.5, 0.3)).train()
    task_type_ids = torch.tensor([2, 3, 4, 1] * 5000)
    torch.manual_seed(0)
    choice = model._draw_conditions(len(task_type_ids), task_type_ids)
    assert (choice[2::4] == 2).all() and (choice[3::4] == 2).all()
    shares = torch.bincount(torch.cat([choice[0::4], choice[1::4]]), minlength=3) / 10000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)
    model.config.coc_granularity = "batch"
    assert len(set(model._draw_conditions(50, None).tolist())) == 1
    torch.manual_seed(5)
    first = [model._draw_conditions(4, None).tolist() for _ in range(3)]
    torch.manual_seed(5)
    assert first == [model._draw_conditions(4, None).tolist() for _ in range(3)]


@pytest.mark.parametrize(
    ("probabilities", "condition"), [((1, 0, 0), "prompt"), ((0, 1, 0), "answer"), ((0, 0, 1), "full")]
)
def test_chain_of_condition_in_training(probabilities, condition):
    model = tiny_model("llama", coc_probabilities=probabilities)
    batch = training_batch(model.config, ("tts", "vc"))
    expected = model(**batch, condition=condition).acoustic_loss
    torch.testing.assert_close(model.train()(**batch).acoustic_loss, expected)
    torch.testing.assert_close(model.eval()(**batch).acoustic_loss, model(**batch, condition="full").acoustic_loss)


def test_official_parity_preset():
    config = DualSpeechConfig.official_parity()
    assert tuple(config.coc_probabilities) == (0.33, 0.33, 0.34) and config.coc_granularity == "batch"
    assert config.acoustic_on_understanding and not config.condition_on_eos
    assert DualSpeechConfig.official_parity(condition_on_eos=True).condition_on_eos


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_checkpointing_changes_nothing(backbone):
    model = tiny_model(backbone, scale=2.0).train()
    batch = training_batch(model.config)

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert plain.keys() == gradients().keys()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


def test_sdpa_equals_eager(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    batch = training_batch(model.config)
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.acoustic_model.config._attn_implementation == "eager"
    for condition in ("prompt", "answer", "full"):
        torch.testing.assert_close(
            eager(**batch, condition=condition).loss, model(**batch, condition=condition).loss, rtol=1e-4, atol=1e-4
        )


def test_bf16_runs_and_is_close(tmp_path):
    model = tiny_model("llama", scale=2.0)
    model.save_pretrained(tmp_path)
    batch = training_batch(model.config)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half(**batch).loss.float(), model(**batch).loss, rtol=0.05, atol=0.05)


def test_device_map_on_one_device(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert model(**training_batch(model.config)).loss.isfinite()


def test_without_an_acoustic_stage():
    """The paper's baselines: the language model alone."""
    model = tiny_model("llama", acoustic_config=None)
    batch = training_batch(tiny_config())
    with pytest.raises(ValueError, match="acoustic"):
        model(**batch)
    del batch["acoustic_labels"]
    output = model(**batch)
    assert output.acoustic_loss is None
    torch.testing.assert_close(output.loss, output.text_loss + output.semantic_loss)
    assert not any("acoustic" in name or "speaker" in name for name, _ in model.named_parameters())


def test_without_a_speaker_token():
    model = tiny_model("llama", speaker_embedding_size=None)
    batch = training_batch(model.config)
    del batch["speaker_embeds"]
    assert model(**batch).acoustic_loss > 0
    assert not hasattr(model, "speaker_projector")


def test_several_codebooks():
    model = tiny_model("llama", acoustic={"num_codebooks": 3}, scale=2.0)
    batch = training_batch(model.config, ("asr", "tts", "vc"))
    batch["acoustic_labels"] = batch["acoustic_labels"][..., None].repeat(1, 1, 3)
    output = model(**batch)
    assert output.acoustic_loss > 0 and output.acoustic_logits.shape[0] == 3
    output.loss.backward()


def test_resizing_the_vocabulary():
    model = tiny_model("llama")
    model.resize_token_embeddings(64)
    assert model.config.text_config.vocab_size == 64
    assert model(**training_batch(model.config)).logits.shape[-1] == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker_embeds": None}, "speaker_embeds"),
        ({"speaker_embeds": torch.zeros(4, 5)}, r"\(4, 5\).*\(4, 6\)"),
        ({"condition": "both"}, "prompt, answer, full"),
        ({"condition": "answer", "prompt_mask": None}, "prompt_mask"),
        ({"acoustic_labels": torch.full((4, 3), 99)}, "99|label"),
    ],
)
def test_bad_inputs(change, message):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=message):
        model(**{**training_batch(model.config), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coc_probabilities": (0.5, 0.5, 0.5)}, "sums to 1.5"),
        ({"coc_probabilities": (1.0,)}, "three"),
        ({"coc_tasks": ("asr",)}, "asr"),
        ({"coc_granularity": "token"}, "'sample' and 'batch'"),
        ({"semantic_token_offset": 41}, "overlap"),
        ({"semantic_codebook_size": 100}, "resize"),
        ({"semantic_codebook_size": 0}, "at least 1"),
        ({"speaker_embedding_size": 0}, "positive"),
        ({"acoustic_frame_rate": 0}, "positive"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**change)


def test_a_text_checkpoint_loads_into_the_language_model(tmp_path):
    config = tiny_config("llama")
    text_model = AutoModelForCausalLM.from_config(config.text_config)
    text_model.save_pretrained(tmp_path)
    model = DualSpeechForConditionalGeneration.from_pretrained(tmp_path, config=config)
    torch.testing.assert_close(model.get_output_embeddings().weight, text_model.lm_head.weight)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_composing_leaves_the_config_of_a_running_model_alone():
    text_model = AutoModelForCausalLM.from_config(tiny_config("llama").text_config, attn_implementation="eager")
    tiny_config("llama", text_config=text_model.config)
    assert text_model.config._attn_implementation == "eager"


def test_the_end_of_training_comes_first_among_several_end_ids():
    from dualspeech.processing.tokenization_dualspeech import extend_tokenizer
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    extend_tokenizer(tokenizer, 13)
    config = copy.deepcopy(tiny_config("llama").text_config)
    config.vocab_size, config.eos_token_id = len(tokenizer), [9, tokenizer.eos_token_id, 7]
    model = DualSpeechForConditionalGeneration.from_text_model(
        AutoModelForCausalLM.from_config(config),
        tokenizer,
        semantic_codebook_size=13,
        acoustic_config=tiny_config().acoustic_config,
    )
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 9, 7]


def test_baselines_accept_batches_with_empty_acoustic_labels():
    """What the Trainer evaluates has the entries that `forward` names, for every model."""
    model = tiny_model("llama", acoustic_config=None)
    batch = training_batch(tiny_config())
    batch["acoustic_labels"] = torch.full((4, 1), -100)
    assert model(**batch).acoustic_loss is None
