"""A tiny checkpoint of everything, and what it answers: the same numbers are asked for in other processes."""

import json
import textwrap

from tests.package.running import run_python
from tests.tiny import tiny_audio_tokenizer, tiny_processor

# Defines `answers(model, processor)`: what the checkpoint says, as JSON, in any process.
ANSWERS = """
import json, torch

def answers(model, processor):
    time = torch.arange(8000) / 16000
    wave = (0.3 * torch.sin(2 * torch.pi * 220 * time)).numpy()
    model.eval()
    torch.manual_seed(0)
    result = {"weights": [float(p.detach().double().abs().sum()) for p in model.parameters()]}
    asr = model.generate(**processor(task="asr", audio=(wave, 16000)), max_new_tokens=8)
    result["ids"] = asr.generated_ids.tolist()
    inputs = processor("ab", task="tts", speaker=[0.5] * 12)
    tts = model.generate(**inputs, max_new_tokens=12, acoustic={"max_codes": 20})
    result["codes"] = tts.acoustic_codes.tolist()
    audio = processor.batch_decode(tts)[0].audio
    result["audio"] = [len(audio), float(abs(audio).sum())]
    return result
"""


def tiny_dualspeech(processor):
    from dualspeech import DualSpeechConfig, DualSpeechForConditionalGeneration

    tokenizer = processor.tokenizer
    config = DualSpeechConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        acoustic_config={
            "codebook_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_condition_positions": 256,
            "max_target_positions": 64,
        },
        audio_start_token_id=tokenizer.convert_tokens_to_ids("<audio>"),
        audio_end_token_id=tokenizer.convert_tokens_to_ids("</audio>"),
        semantic_token_offset=tokenizer.convert_tokens_to_ids("<a_0>"),
        semantic_codebook_size=24,
        speaker_embedding_size=12,
    )
    return DualSpeechForConditionalGeneration(config).eval()


def tiny_pair():
    """A model and its processor, audio tokenizer included."""
    processor = tiny_processor(audio_tokenizer=tiny_audio_tokenizer())
    return tiny_dualspeech(processor), processor


def answers(model, processor):
    """What `ANSWERS` says in this process."""
    scope = {}
    exec(ANSWERS, scope)
    return scope["answers"](model, processor)


def answers_elsewhere(code, **kwargs):
    """Run `code`, which loads `model` and `processor`, in a new process; its answers."""
    out = run_python(f"{ANSWERS}\n{textwrap.dedent(code)}\nprint(json.dumps(answers(model, processor)))", **kwargs)
    return json.loads(out.splitlines()[-1])


__all__ = ["ANSWERS", "answers", "answers_elsewhere", "tiny_dualspeech", "tiny_pair"]
