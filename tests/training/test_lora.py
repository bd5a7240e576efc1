"""LoRA through PEFT: every wanted target is reached, only the new rows train, adapters and merges reload."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForMultimodalLM

from dualspeech.training.lora import dualspeech_lora_config, lora_target_names, new_token_indices
from tests.modeling.dualspeech_cases import BACKBONES, prompt_batch, tiny_model, training_batch

UNFUSED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_target_is_dropped(backbone):
    """The released list of names reaches every projection of every layer, fused or not."""
    model = tiny_model(backbone)
    per_layer = 4 if backbone == "phi3" else 7
    assert len(lora_target_names(model)) == per_layer
    for names in (None, UNFUSED):
        peft_model = get_peft_model(tiny_model(backbone), dualspeech_lora_config(model, target_names=names, r=2))
        adapted = {name.split(".lora_A")[0] for name, _ in peft_model.named_parameters() if "lora_A" in name}
        assert len(adapted) == per_layer * model.config.text_config.num_hidden_layers
        assert all(".language_model." in name for name in adapted)


def test_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="w1"):
        dualspeech_lora_config(tiny_model("phi3"), target_names=["q_proj", "w1"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_only_new_rows_adapters_and_acoustic_parts_train(backbone):
    model = tiny_model(backbone, scale=2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = next(iter(new_token_indices(model).values()))
    assert rows == [40, 41, *range(42, 55)]
    tied = model.config.text_config.tie_word_embeddings
    assert len(new_token_indices(model)) == (1 if tied else 2)
    peft_model = get_peft_model(model, dualspeech_lora_config(model, r=2)).train()
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    peft_model(**training_batch(model.config)).loss.backward()
    optimizer.step()
    merged = peft_model.merge_and_unload().state_dict()
    assert merged.keys() == before.keys()
    for table in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        changed = (merged[table] != before[table]).any(dim=1).nonzero()[:, 0].tolist()
        assert changed and set(changed) <= set(rows), table
    assert not torch.equal(merged["acoustic_model.lm_head.weight"], before["acoustic_model.lm_head.weight"])
    assert torch.equal(merged["language_model.model.norm.weight"], before["language_model.model.norm.weight"])


@pytest.mark.parametrize("backbone", BACKBONES)  # qwen3 ties its head to the embeddings
def test_adapter_and_merged_model_reload_and_generate_alike(backbone, tmp_path):
    base = tmp_path / "base"
    tiny_model(backbone, scale=2.0).save_pretrained(base)
    model = AutoModelForMultimodalLM.from_pretrained(base)
    peft_model = get_peft_model(model, dualspeech_lora_config(model, r=2)).train()
    batch = training_batch(model.config)
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        peft_model(**batch).loss.backward()
        optimizer.step()
    peft_model.eval()
    prompts = prompt_batch(("tts", "asr"), (4, 6))
    prompts["speaker_embeds"] = torch.ones(2, 6)
    settings = {"do_sample": False, "num_beams": 1, "acoustic": {"do_sample": False}, "max_new_tokens": 8}
    expected_loss = peft_model(**batch).loss
    expected = peft_model.generate(**prompts, **settings)
    peft_model.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(base), tmp_path / "adapter")
    torch.testing.assert_close(reloaded.eval()(**batch).loss, expected_loss)
    merged = reloaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for other in (merged, AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged")):
        torch.testing.assert_close(other(**batch).loss, expected_loss, rtol=1e-4, atol=1e-4)
        output = other.generate(**prompts, **settings)
        assert torch.equal(output.sequences, expected.sequences)
        assert torch.equal(output.acoustic_codes, expected.acoustic_codes)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_all_arguments_pass_through_the_wrapper(task_type):
    """PEFT's wrapper for causal language models has arguments of its own; none of ours may get lost in it."""
    model = tiny_model("llama", scale=2.0, coc_probabilities=(1, 0, 0))
    batch = training_batch(model.config, ("tts", "t2st", "asr"))
    expected = model.train()(**batch)
    wrapped = get_peft_model(model, dualspeech_lora_config(model, r=2, lora_dropout=0.0, task_type=task_type)).train()
    output = wrapped(**batch)
    torch.testing.assert_close(output.acoustic_loss, expected.acoustic_loss)
    torch.testing.assert_close(output.loss, expected.loss)
