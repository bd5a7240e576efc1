"""Time of a training step of both language models against a plain causal language model of the same backbone.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --width 2048 --layers 24 --dtype bfloat16 --device cuda

One process, random weights, the same number of tokens. *DualSpeech* has the backbone, AcousticGPT and all three losses;
*split layer* has the same depth, the last `--branch` layers twice, and rows that are text and speech in turns. A step is
forward and backward (with `--optimizer` also AdamW). The models take turns step by step; *time* is the median of the
ratios of neighbouring steps to the plain model's, *FLOPs* the ratio of what torch counts (products of matrices,
attention). *Overhead* is what the time has beyond the FLOPs. *Logits* are scores that the released design makes for every
row with both heads: without them (the default in training) each head runs only where it has a target.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from machine import describe
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from training_models import (
    AUDIO_IDS,
    TEXT_IDS,
    backbone,
    document,
    dualspeech,
    dualspeech_example,
    pad,
    split_layer,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

aten = torch.ops.aten
# torch counts the attention kernels of GPUs only.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, out_shape=None, **kwargs: sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, out_shape=None, **kwargs: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def plain(width: int, layers: int, vocabulary: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**backbone(width, layers, vocabulary), tie_word_embeddings=False)).train()


def step(model, batch, optimizer=None, clock=time.perf_counter) -> float:
    """Seconds of one step."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    model(**batch, use_cache=False).loss.backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def flops(model, batch) -> int:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step(model, batch)
    return counter.get_total_flops()


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--branch", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--optimizer", action="store_true")
    parser.add_argument("--cpu_time", action="store_true", help="seconds of the processor, for a machine that is busy")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    draw = np.random.default_rng(0)
    tasks = pad([dualspeech_example(options.length, draw) for _ in range(options.batch)])
    documents = pad([document(options.length, draw) for _ in range(options.batch)])
    ids = {"input_ids": tasks["input_ids"], "labels": tasks["labels"], "attention_mask": tasks["attention_mask"]}
    text = torch.from_numpy(draw.integers(5, TEXT_IDS, (options.batch, options.length)))
    pairs = {
        "DualSpeech": (
            dualspeech(options.width, options.layers),
            tasks,
            plain(options.width, options.layers, TEXT_IDS + AUDIO_IDS),
            ids,
        ),
        "split layer": (
            split_layer(options.width, options.layers, options.branch),
            documents,
            plain(options.width, options.layers, TEXT_IDS),
            {"input_ids": text, "labels": text, "attention_mask": documents["attention_mask"]},
        ),
    }
    pairs["split layer, logits"] = (
        pairs["split layer"][0],
        {**documents, "skip_logits": False},
        *pairs["split layer"][2:],
    )
    print(f"{describe()}, {options.dtype} on {options.device}")
    print(
        f"{options.layers} layers of {options.width}, batch {options.batch} x {options.length}, {options.steps} steps"
    )
    print("model                ms/step  plain ms  time   FLOPs  overhead")
    results = {}
    for name, (model, batch, base, base_batch) in pairs.items():
        sides = []
        for one, inputs in ((model.to(**where), batch), (base.to(**where), base_batch)):
            inputs = {
                key: value.to(options.device) if torch.is_tensor(value) else value for key, value in inputs.items()
            }
            optimizer = torch.optim.AdamW(one.parameters()) if options.optimizer else None
            step(one, inputs, optimizer)
            sides.append((one, inputs, optimizer))
        counted = [flops(one, inputs) for one, inputs, _ in sides]
        clock = time.process_time if options.cpu_time else time.perf_counter
        times = [[step(*side, clock) for side in sides] for _ in range(options.steps)]
        ratio = statistics.median(ours / theirs for ours, theirs in times)
        ours, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        expected = counted[0] / counted[1]
        results[name] = {"ms": ours, "plain_ms": theirs, "time": ratio, "flops": expected}
        print(f"{name:20s} {ours:7.0f}  {theirs:8.0f}  {ratio:.3f}  {expected:.3f}  {ratio / expected - 1:+.1%}")
    return results


if __name__ == "__main__":
    main()
