"""Models, prompts and a naive reference for the generation tests of the split-layer model."""

import torch

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM

from .. import fixture_checks
from .split_layer_cases import tiny_config


def recorded():
    """`(model, tensors, meta)` of the recorded greedy runs."""
    state, tensors, meta = fixture_checks.load("moss_lm")
    config = {name: value for name, value in meta["config"].items() if name != "stop_token_ids"}
    model = SplitLayerQwen3ForCausalLM(SplitLayerQwen3Config(**config)).eval()
    model.load_state_dict(state)
    return model, tensors, meta


def tiny_model(seed=0, lively=True, **kwargs):
    """A random model; a `lively` one leaves each channel now and then, and ends."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = SplitLayerQwen3ForCausalLM(tiny_config(**kwargs)).eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.25)
        if lively:
            model.text_lm_head.weight[model.config.sosp_token_id] *= 2.0
            model.text_lm_head.weight[model.config.eos_token_id] *= 1.7
            model.audio_lm_head.weight[model.config.eosp_token_id] *= 2.0
    return model


def text_rows(config, *ids):
    return torch.tensor([[index, config.audio_pad_token_id] for index in ids])


def speech_rows(config, *codes):
    return torch.tensor([[config.modality_pad_token_id, code] for code in codes])


def prompts_of(config):
    """Prompts in every state that a prompt can end in, of several lengths, with histories of both kinds."""
    text, speech = text_rows(config, 3, 7, 2, 9, 4), speech_rows(config, 1, 9, 4, 2)
    start, end = text_rows(config, config.sosp_token_id), speech_rows(config, config.eosp_token_id)
    return {
        "text": text,
        "start": torch.cat([text[:3], start]),
        "in_speech": torch.cat([text[:2], start, speech]),
        "behind_speech": torch.cat([start, speech[:2], end]),
        "history": torch.cat([text, start, speech, end, text[1:3], start, speech[::2], end, text[:1]]),
        "history_start": torch.cat([text[:2], start, speech, end, text, start]),
        "short": text[:1],
    }


def left_padded(prompts, config):
    """`input_ids` and `attention_mask` of a batch; padded rows hold garbage in the audio cell."""
    width = max(len(rows) for rows in prompts)
    pad = torch.tensor([config.pad_token_id, 3])
    rows = torch.stack([torch.cat([pad.expand(width - len(rows), 2), rows]) for rows in prompts])
    mask = torch.tensor([[0] * (width - len(rows)) + [1] * len(rows) for rows in prompts])
    return {"input_ids": rows, "attention_mask": mask}


@torch.no_grad()
def naive_generate(
    model, prompt, max_new_tokens, min_new_tokens=0, repetition_penalty=1.0, stops=None, pad_code_ends_speech=True
):
    """The state machine of the specification in plain words: one row at a time, everything recomputed. Returns the new
    rows and whether a stop id ended them."""
    config = model.config
    stops = {config.eos_token_id, config.pad_token_id} if stops is None else stops
    rows = prompt.tolist()
    is_speech = rows[-1][0] == config.modality_pad_token_id and rows[-1][1] != config.eosp_token_id
    if pad_code_ends_speech and rows[-1][1] == config.audio_pad_token_id:
        is_speech = False
    for number in range(1, max_new_tokens + 1):
        if not is_speech and rows[-1][0] == config.sosp_token_id:
            is_speech = True
        if is_speech and rows[-1] == [config.modality_pad_token_id, config.eosp_token_id]:
            is_speech = False
        output = model(torch.tensor([rows]), use_cache=False)
        scores = (output.audio_logits if is_speech else output.text_logits)[0, -1].clone()
        if is_speech:
            spoken = {row[1] for row in rows if row[0] == config.modality_pad_token_id}
            scores[config.eosp_token_id + 1 :] = -torch.inf
            if number < min_new_tokens:
                scores[config.eosp_token_id] = -torch.inf
        else:
            spoken = {row[0] for row in rows if row[0] != config.modality_pad_token_id}
            scores[config.modality_pad_token_id] = -torch.inf
            if number <= min_new_tokens:
                scores[sorted(stops)] = -torch.inf
        for index in spoken:
            scores[index] = scores[index] * (repetition_penalty if scores[index] < 0 else 1 / repetition_penalty)
        best = int(scores.argmax())
        rows.append([config.modality_pad_token_id, best] if is_speech else [best, config.audio_pad_token_id])
        if not is_speech and best in stops:
            return torch.tensor(rows[len(prompt) :]), True
    return torch.tensor(rows[len(prompt) :]), False


def same_rows(output, index, rows, config):
    """Fail unless row `index` of `output` generated `rows`, with padding behind."""
    generated, length = output.generated_rows[index], int(output.generated_lengths[index])
    assert generated[:length].tolist() == rows.tolist()
    assert (generated[length:] == torch.tensor([config.pad_token_id, config.audio_pad_token_id])).all()
