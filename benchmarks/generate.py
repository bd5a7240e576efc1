"""Two-stage generation of DualSpeechLM on a small random model: our batched, cached path against the released procedure.

    python benchmarks/generate.py
    python benchmarks/generate.py --hidden_size 512 --layers 8 --codes 200

The released procedure (the baseline) has no key-value cache in either stage, passes the generated sequence through the
language model a second time for its hidden states, and takes one prompt at a time. Both sides run greedily in this process
on the same weights and produce the same number of ids; speech codes are compared for equality.
"""

import argparse
import time

import torch
from machine import describe

from dualspeech import DualSpeechConfig, DualSpeechForConditionalGeneration


def build(options) -> DualSpeechForConditionalGeneration:
    torch.manual_seed(0)
    config = DualSpeechConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 2000,
            "hidden_size": options.hidden_size,
            "intermediate_size": 4 * options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.hidden_size // 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        acoustic_config={
            "hidden_size": options.hidden_size,
            "intermediate_size": 4 * options.hidden_size,
            "num_hidden_layers": 6,
            "num_attention_heads": options.hidden_size // 32,
        },
        audio_start_token_id=900,
        audio_end_token_id=901,
        semantic_token_offset=902,
    )
    model = DualSpeechForConditionalGeneration(config).eval()
    with torch.no_grad():  # ends never win, so that both sides run to the same lengths; choices are well apart
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        model.language_model.lm_head.weight[[2, 901]] = 0
        model.language_model.lm_head.weight[902:1926] += 0.05 * model.language_model.lm_head.weight[902:1926].sign()
        model.acoustic_model.lm_head.weight[config.acoustic_config.eos_token_id] = 0
    return model


def prompts(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = [length - 3 * (i % 4) for i in range(batch_size)]
    ids = torch.randint(3, 900, (batch_size, length), generator=generator)
    mask = torch.stack([torch.arange(length) >= length - n for n in lengths]).long()
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "task_type_ids": torch.full((batch_size,), 2),
        "speaker_embeds": torch.randn(batch_size, 512, generator=generator),
    }


def run(model, batch, options, cached: bool):
    """Seconds, semantic and acoustic codes of one call."""
    extra = {} if cached else {"use_cache": False}
    acoustic_codes = round(options.codes * model.config.acoustic_frame_rate / model.config.semantic_frame_rate)
    start = time.perf_counter()
    output = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=options.codes + 2,
        acoustic={"do_sample": False, "max_codes": acoustic_codes, **extra},
        **extra,
    )
    if not cached:
        # The released code runs the language model once more over the finished sequence.
        model.language_model(output.sequences, use_cache=False)
    return time.perf_counter() - start, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=40, help="ids of the longest prompt")
    parser.add_argument("--codes", type=int, default=50, help="speech codes per row (25 a second)")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs of the cached path counts")
    options = parser.parse_args()
    print(describe())
    model = build(options)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {options.codes} speech codes per row")
    print(f"{'batch':>5} {'ours s':>8} {'released s':>11} {'ratio':>6} {'s per s of speech':>18} {'equal codes':>11}")
    for batch_size in (1, 8):
        batch = prompts(batch_size, options.prompt)
        ours, output = min(
            (run(model, batch, options, cached=True) for _ in range(options.repeats)), key=lambda r: r[0]
        )
        released, equal = 0.0, True
        for i in range(batch_size):
            keep = batch["attention_mask"][i].bool()
            row = {key: value[[i]] for key, value in batch.items()}
            row |= {key: row[key][:, keep] for key in ("input_ids", "attention_mask")}
            seconds, single = run(model, row, options, cached=False)
            released += seconds
            equal &= torch.equal(single.semantic_codes[0], output.semantic_codes[i])
            equal &= torch.equal(single.acoustic_codes[0], output.acoustic_codes[i])
        speech = float(output.acoustic_lengths.sum()) / model.config.acoustic_frame_rate
        print(
            f"{batch_size:5} {ours:8.2f} {released:11.2f} {released / ours:6.1f} {ours / speech:18.3f} {equal!s:>11}"
        )


if __name__ == "__main__":
    main()
