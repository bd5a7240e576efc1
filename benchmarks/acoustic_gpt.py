"""Decoding with AcousticGPT at its released size: cached, recomputed, and the floor that memory sets.

    python benchmarks/acoustic_gpt.py

One process, random weights, fp32 on the CPU, one sequence. *Cached* is `generate` from the condition to the last
code, sampling as the released system does. *Recompute* is the whole sequence again for every code, as the released
code decodes (`generate(use_cache=False)`); it is measured on evenly spaced codes and scaled up, or in full with
`--full-recompute`. The *floor* is the time to read every byte once that a step cannot do without: the weights of
layers, last norm and head, and the keys and values of the positions so far.
"""

import argparse
import math
import statistics
import time
from functools import partial

import torch
from machine import best_seconds, describe, read_seconds

from dualspeech.configuration.configuration_acoustic_gpt import AcousticGPTConfig
from dualspeech.modeling import onednn_linear
from dualspeech.modeling.modeling_acoustic_gpt import AcousticGPTForCausalLM


@torch.no_grad()
def recompute_seconds(model, condition, codes: int, samples: int) -> float:
    """Seconds to decode `codes` codes without a cache, from `samples` evenly spaced steps."""
    times = []
    for sample in range(samples):
        step = int((sample + 0.5) * codes / samples)
        ids = torch.randint(model.config.codebook_size, (len(condition), step + 1))
        start = time.perf_counter()
        model(condition, input_ids=ids, use_cache=False, logits_to_keep=1)
        times.append(time.perf_counter() - start)
    return statistics.fmean(times) * codes


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", type=int, default=300, help="condition positions")
    parser.add_argument("--codes", type=int, default=400)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    parser.add_argument("--repeats", type=int, default=3, help="the best of that many runs counts")
    parser.add_argument("--recompute-steps", type=int, default=20)
    parser.add_argument("--full-recompute", action="store_true", help="time every recomputed step")
    parser.add_argument("--variants", action="store_true", help="also other caches, and without oneDNN")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    config = AcousticGPTConfig(
        num_hidden_layers=options.layers, hidden_size=options.width, intermediate_size=4 * options.width
    )
    model = AcousticGPTForCausalLM(config).eval()
    condition = torch.randn(options.batch, options.condition, config.hidden_size)
    print(describe())
    total = sum(parameter.numel() for parameter in model.model.parameters())
    print(
        f"{total / 1e6:.1f} M parameters and a head of {model.lm_head.weight.numel() / 1e6:.1f} M, batch "
        f"{options.batch}, condition {options.condition}, {options.codes} codes"
    )

    def cached(repeats: int = options.repeats, **settings) -> float:
        run = partial(model.generate, condition, eos_token_id=None, **settings)
        run(max_lengths=min(5, options.codes))
        return best_seconds(lambda: run(max_lengths=options.codes), repeats, warm=False)

    step_weights = [*model.model.layers.parameters(), *model.model.norm.parameters(), *model.lm_head.parameters()]
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in step_weights)
    positions = options.condition + (options.codes + 1) / 2
    state_bytes = int(2 * options.batch * config.num_hidden_layers * config.hidden_size * positions) * 4
    step_bytes = weight_bytes + state_bytes

    reading, seconds = math.inf, math.inf
    for _ in range(options.repeats):  # in turns, so that both meet the machine in the same state
        reading = min(reading, read_seconds(step_bytes, times=options.codes, repeats=1))
        seconds = min(seconds, cached(repeats=1))
    floor = reading * options.codes
    variants = {}
    if options.variants:
        variants["dynamic cache"] = cached(cache_implementation="dynamic")
        variants["static cache"] = cached(cache_implementation="static")
        if onednn_linear.ONEDNN:
            onednn_linear.ONEDNN = False
            variants["without oneDNN"] = cached()
            onednn_linear.ONEDNN = True
    samples = options.codes if options.full_recompute else min(options.recompute_steps, options.codes)
    recompute = recompute_seconds(model, condition, options.codes, samples)

    how = "every step" if samples == options.codes else f"from {samples} evenly spaced steps"
    print(f"memory     {step_bytes / reading / 1e9:8.1f} GB/s read")
    print(f"cached     {seconds:8.2f} s   {seconds / options.codes * 1e3:7.2f} ms a code (best of {options.repeats})")
    for name, value in variants.items():
        print(f"  {name:15s} {value:.2f} s")
    print(f"recompute  {recompute:8.2f} s   ({how}), {recompute / seconds:.1f} times the cached run")
    print(
        f"floor      {floor:8.2f} s   {reading * 1e3:7.2f} ms a code for {weight_bytes / 1e6:.0f} MB of weights and "
        f"{state_bytes / 1e6:.0f} MB of keys and values; the cached run takes {seconds / floor:.2f} times that"
    )
    return {"cached": seconds, "recompute": recompute, "floor": floor}


if __name__ == "__main__":
    main()
