"""Training throughput on rows of very different lengths: padded, bucketed by length, and packed.

    python benchmarks/packing.py
    python benchmarks/packing.py --model split_layer --context 1024 --device cuda --dtype bfloat16

One process, random weights, lengths drawn log-normally between 16 and the context length. A step is forward and
backward. The three ways take turns batch by batch, each over all rows, so that a noisy machine disturbs them alike.
*padded*: batches of `--batch` rows in random order. *bucketed*: the same with the Trainer's sampler by length.
*packed*: as many packs of the context length as hold about as many positions as a padded batch. *fill* is the share of
positions that are no padding; tokens are those positions.
"""

import argparse
import time

import numpy as np
import torch
from machine import describe
from training_models import document, dualspeech, dualspeech_example, pad, per_row, split_layer
from transformers.trainer_pt_utils import get_length_grouped_indices

from dualspeech.training.packing import PackedDataset, pack_columns

WAYS = ("padded", "bucketed", "packed")


def draw_lengths(count: int, context: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.clip(np.exp(draw.normal(np.log(context / 6), 0.8, count)), 16, context).astype(int)


def batches_of(way: str, examples: list[dict], batch: int, context: int) -> list[dict[str, torch.Tensor]]:
    if way == "packed":
        packs = PackedDataset(examples, context)
        padded = np.mean([part["labels"].numel() for part in batches_of("padded", examples, batch, context)])
        size = max(round(float(padded) / context), 1)
        return [pack([packs[i] for i in range(at, min(at + size, len(packs)))]) for at in range(0, len(packs), size)]
    lengths = [len(example["input_ids"]) for example in examples]
    generator = torch.Generator().manual_seed(0)
    if way == "bucketed":
        order = get_length_grouped_indices(lengths, batch, generator=generator)
    else:
        order = torch.randperm(len(examples), generator=generator).tolist()
    return [pad([examples[i] for i in order[at : at + batch]]) for at in range(0, len(order), batch)]


def pack(packs: list[list[dict]]) -> dict[str, torch.Tensor]:
    rows = [example for pack in packs for example in pack]
    pads = {"input_ids": 0, "labels": -100, **({"prompt_mask": 0} if "prompt_mask" in rows[0] else {})}
    if isinstance(rows[0]["input_ids"][0], list):
        pads["input_ids"] = [0, 512]
    return {**pack_columns(packs, pads), **per_row(rows)}


def run(model, batch: dict[str, torch.Tensor], clock=time.perf_counter) -> float:
    """Seconds of forward and backward."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    model.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    model(**batch).loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=["dualspeech", "split_layer"], choices=["dualspeech", "split_layer"]
    )
    parser.add_argument("--width", type=int, default=256, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, for a machine that is busy")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{describe()}, {options.dtype} on {options.device}")
    lengths = draw_lengths(options.rows, options.context)
    print(
        f"{len(lengths)} rows of {lengths.min()} to {lengths.max()} ids, mean {lengths.mean():.0f}; context {options.context}"
    )
    print("model        way       steps  fill   seconds  tokens/s  over padded")
    results = {}
    for name in options.model:
        build, example = (dualspeech, dualspeech_example) if name == "dualspeech" else (split_layer, document)
        model = build(options.width, options.layers).to(options.device, getattr(torch, options.dtype))
        draw = np.random.default_rng(1)
        examples = [example(int(length), draw) for length in lengths]
        tokens = sum(len(row["input_ids"]) for row in examples)
        batches = {way: batches_of(way, examples, options.batch, options.context) for way in WAYS}
        for way in WAYS:  # warm
            run(model, batches[way][0])
        seconds = dict.fromkeys(WAYS, 0.0)
        for index in range(max(map(len, batches.values()))):
            for way in WAYS:
                if index < len(batches[way]):
                    seconds[way] += run(model, batches[way][index], clock)
        results[name] = {}
        for way in WAYS:
            positions = sum(batch["labels"].numel() for batch in batches[way])
            speed = tokens / seconds[way]
            results[name][way] = {"fill": tokens / positions, "tokens_per_second": speed}
            print(
                f"{name:12s} {way:9s} {len(batches[way]):5d}  {tokens / positions:.2f}  {seconds[way]:8.2f}  {speed:8.0f}  "
                f"{seconds['padded'] / seconds[way]:.2f}"
            )
    return results


if __name__ == "__main__":
    main()
