"""Speech rows of a mid-size split-layer model: both branches at every step against lazy branches.

    python benchmarks/split_layer.py
    python benchmarks/split_layer.py --dtype bfloat16 --threads 2

One process, random weights (24 + 4 + 4 layers of width 768 with the released vocabularies unless told otherwise), a
prompt that ends in the start of speech, no end of speech. *Step* is the bare decoding step of a loop over
`forward`; *generate* is `model.generate`, greedy, without the step that reads the prompt. In both, the two variants take
turns row by row, so that a noisy machine disturbs both alike; times are medians, and *ratio* is the median of the ratios
of neighbouring rows. *Bytes* is what a row cannot do without: the weights of its layers, norms and heads, and the keys
and values of the rows so far. The ratio of the times should follow the ratio of the bytes.
"""

import argparse
import statistics
import threading
import time

import torch
from machine import describe, read_seconds

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM
from dualspeech.modeling.split_layer_cache import SplitLayerCache

VARIANTS = {"both": None, "lazy": ("audio",)}


def build(options) -> SplitLayerQwen3ForCausalLM:
    torch.manual_seed(0)
    shared, branch = options.layers
    ids = {"modality_pad_token_id": 3, "sosp_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = SplitLayerQwen3Config(
        num_shared_layers=shared,
        num_modality_layers=branch,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_attention_heads=options.width // 64,
        num_key_value_heads=max(options.width // 256, 1),
        head_dim=64,
        vocab_size=options.vocabularies[0],
        audio_vocab_size=options.vocabularies[1],
        eosp_token_id=options.vocabularies[1] - 2,
        audio_pad_token_id=4,
        **ids,
    )
    model = SplitLayerQwen3ForCausalLM(config).to(getattr(torch, options.dtype))
    with torch.no_grad():
        model.audio_lm_head.weight[config.eosp_token_id] = 0  # its score of 0 is never the best
    return model.to(options.device).eval()


def prompt_of(model, batch: int, rows: int) -> torch.LongTensor:
    """Flat ids `[batch, rows]`: text, and the start of speech at the end."""
    flat = torch.randint(4, model.config.vocab_size, (batch, rows), generator=torch.Generator().manual_seed(1))
    flat[:, -1] = model.config.sosp_token_id
    return flat.to(model.device)


def bytes_of_a_row(model, variant: str, batch: int, rows: float) -> tuple[int, int]:
    """Bytes of weights, and of keys and values of `rows` rows in each of `batch` sequences, that a speech row reads."""
    parts = [model.model.shared_block, model.model.audio_block, model.model.audio_norm, model.audio_lm_head]
    if variant == "both":
        parts += [model.model.text_block, model.model.text_norm, model.text_lm_head]
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    config = model.config
    layers = config.num_shared_layers + config.num_modality_layers * (2 if variant == "both" else 1)
    width = 2 * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return weights, int(batch * rows * layers * width)


def clock(device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def steps(model, prompt, rows: int, warm: int) -> dict[str, list[float]]:
    """Seconds of each step of a loop over `forward`, the variants in turns."""
    caches, last, times = {}, {}, {name: [] for name in VARIANTS}
    for name, branches in VARIANTS.items():
        caches[name] = SplitLayerCache(model.config)
        output = model(prompt, past_key_values=caches[name], logits_to_keep=1, branches=branches)
        last[name] = output.logits[:, -1, model.config.vocab_size :].argmax(dim=-1, keepdim=True)
    for row in range(warm + rows):
        for name, branches in sorted(VARIANTS.items(), reverse=bool(row % 2)):
            start = clock(model.device)
            output = model(
                model.config.vocab_size + last[name], past_key_values=caches[name], logits_to_keep=1, branches=branches
            )
            last[name] = output.logits[:, -1, model.config.vocab_size :].argmax(dim=-1, keepdim=True)
            end = clock(model.device)
            if row >= warm:
                times[name].append(end - start)
        assert torch.equal(last["both"], last["lazy"]) or model.dtype != torch.float32, "the variants differ"
    return times


def generations(model, prompt, rows: int, **settings) -> dict[str, list[float]]:
    """Seconds of each row of `generate`: two runs at the same time, of which one waits while the other makes a row."""
    times, results = {name: [] for name in VARIANTS}, {}
    turns = {name: threading.Semaphore(0) for name in VARIANTS}

    def run(name, other):
        started = None

        def mark(ids, scores):
            nonlocal started
            if started is not None:
                times[name].append(clock(model.device) - started)
            turns[other].release()
            turns[name].acquire()
            started = clock(model.device)
            return scores

        turns[name].acquire()
        try:
            output = model.generate(
                prompt, max_new_tokens=rows + 1, lazy_branches=name == "lazy", logits_processor=[mark], **settings
            )
            results[name] = output.generated_rows
        finally:
            for _ in range(rows + 2):  # the other one goes on alone
                turns[other].release()

    threads = [threading.Thread(target=run, args=pair) for pair in (("both", "lazy"), ("lazy", "both"))]
    for thread in threads:
        thread.start()
    turns["both"].release()
    for thread in threads:
        thread.join()
    assert torch.equal(results["both"], results["lazy"]) or model.dtype != torch.float32, "the variants differ"
    # The last row of the run that ends first is the last one that was made alone.
    return {name: values[:rows] for name, values in times.items()}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[24, 4], help="of the trunk and of each branch")
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--vocabularies", type=int, nargs=2, default=[151680, 16512], help="text and audio ids")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", type=int, default=64, help="rows of the prompt")
    parser.add_argument("--rows", type=int, default=40, help="speech rows")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    model = build(options)
    shared, branch = options.layers
    print(f"{describe()}, {options.dtype} on {options.device}")
    print(
        f"{model.num_parameters() / 1e6:.0f} M parameters: {shared} + {branch} + {branch} layers of {options.width}, "
        f"{options.vocabularies[0]} + {options.vocabularies[1]} ids; prompt of {options.prompt} rows, {options.rows} "
        "speech rows"
    )
    print("batch  what          both ms/row  lazy ms/row  ratio   ratio to bytes")
    results = {}
    for batch in options.batches:
        prompt = prompt_of(model, batch, options.prompt)
        read = {name: bytes_of_a_row(model, name, batch, options.prompt + options.rows / 2) for name in VARIANTS}
        ratio = sum(read["lazy"]) / sum(read["both"])
        result = {"bytes": {"both": sum(read["both"]), "lazy": sum(read["lazy"]), "ratio": ratio}}
        for what, times in (
            ("step", steps(model, prompt, options.rows, warm=3)),
            ("generate", generations(model, prompt, options.rows)),
        ):
            medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
            pairs = zip(times["lazy"], times["both"], strict=True)
            result[what] = {**medians, "ratio": statistics.median(lazy / both for lazy, both in pairs)}
        results[batch] = result
        for what in ("step", "generate"):
            row = result[what]
            print(
                f"{batch:5d}  {what:12s} {row['both']:11.2f}  {row['lazy']:11.2f}  {row['ratio']:5.3f}   "
                f"{row['ratio'] / ratio - 1:+.1%}"
            )
        megabytes = " + ".join(f"{value / 1e6:.0f}" for value in read["lazy"])
        print(
            f"{batch:5d}  megabytes    {sum(read['both']) / 1e6:11.1f}  {sum(read['lazy']) / 1e6:11.1f}  {ratio:5.3f}   "
            f"(lazy: {megabytes} of weights and of keys and values)"
        )
        if options.device == "cpu":
            floor = {name: read_seconds(sum(pair), times=3, repeats=3) * 1e3 for name, pair in read.items()}
            print(f"{batch:5d}  reading them {floor['both']:11.2f}  {floor['lazy']:11.2f}  (ms)")
    return results


if __name__ == "__main__":
    main()
