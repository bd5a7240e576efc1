"""Codes to sound while they come: seconds per chunk with caches, and with the whole prefix computed again.

    python benchmarks/streaming_decode.py
    python benchmarks/streaming_decode.py --size released --device cuda

One process, random weights, one voice, chunks of codes through flow decoder and vocoder. *Cached*: `stream()` of both,
each frame computed once; also with keys and values in half precision, and with a bounded past (`--left_context`).
*Recomputed*: the released protocol, in which the flow decodes prompt and prefix again for every chunk; it is timed on
evenly spaced chunks and scaled up, or in full with `--full_recompute`. The frames of both are compared. The state is
what has to be kept between chunks, for each second of prompt and speech.
"""

import argparse
import statistics
import time

import torch
from machine import describe

from dualspeech import FlowDecoderConfig, FlowDecoderModel, HiFTConfig, HiFTModel

# Fields of flow decoder and vocoder; what is not said is as released.
SIZES = {
    "tiny": (
        {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 1}
        | {"num_upsampled_layers": 1, "estimator_channels": 32, "estimator_num_heads": 2, "estimator_head_dim": 16}
        | {"estimator_num_layers": 1, "estimator_num_mid_stages": 1, "num_timesteps": 2},
        {"upsample_initial_channel": 32, "f0_hidden_size": 32},
    ),
    "mid": (
        {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 3}
        | {"num_upsampled_layers": 2, "estimator_channels": 96, "estimator_num_heads": 4, "estimator_head_dim": 32}
        | {"estimator_num_layers": 2, "estimator_num_mid_stages": 4},
        {"upsample_initial_channel": 128, "f0_hidden_size": 128},
    ),
    "released": ({}, {}),
}


class Clock:
    """Seconds of the blocks it is held around, with what the device still has to do."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self):
        self._start = self._now()

    def __exit__(self, *_):
        self.seconds.append(self._now() - self._start)


def stream(flow, vocoder, codes, voice, **settings):
    """`(mel [1, bins, F], seconds of each chunk, bytes of the state at the end)`."""
    chunk, lookahead = flow.config.chunk_size, flow.config.pre_lookahead
    clock, mel = Clock(flow.device), []
    frames, sound = flow.stream(**voice, **settings), vocoder.stream()
    mel.append(frames.step(codes[:lookahead]))
    for piece in codes[lookahead:].split(chunk):
        with clock:
            mel.append(frames.step(piece))
            sound.step(mel[-1])
    num_bytes = frames.nbytes + sound.nbytes
    mel.append(frames.finish())
    sound.step(mel[-1])
    sound.finish()
    return torch.cat(mel, dim=-1), clock.seconds, num_bytes


def recompute(flow, vocoder, codes, voice, chunks):
    """`({chunk: seconds}, {chunk: its mel frames})` of the released protocol."""
    chunk, lookahead, ratio = flow.config.chunk_size, flow.config.pre_lookahead, flow.config.upsample_ratio
    clock, sound, mel = Clock(flow.device), vocoder.overlap_stream(), {}
    for index in chunks:
        start, end = index * chunk, (index + 1) * chunk
        with clock:
            prefix = flow.decode(codes[None, : end + lookahead], **voice, streaming=True, finalize=False)
            mel[index] = prefix[..., ratio * start :]
            sound.step(mel[index])
    return dict(zip(chunks, clock.seconds, strict=True)), mel


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the utterance")
    parser.add_argument(
        "--prompt_seconds", type=float, default=3.2, help="of the voice prompt; whole chunks of it count"
    )
    parser.add_argument("--chunk_size", type=int, default=5, help="codes")
    parser.add_argument("--left_context", type=int, default=50, help="codes, of the run with a bounded past")
    parser.add_argument("--samples", type=int, default=6, help="chunks that are recomputed")
    parser.add_argument("--full_recompute", action="store_true", help="recompute every chunk")
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    flow_fields, vocoder_fields = SIZES[options.size]
    flow = FlowDecoderModel(FlowDecoderConfig(**flow_fields, chunk_size=options.chunk_size)).eval().to(options.device)
    vocoder = HiFTModel(HiFTConfig(**vocoder_fields)).eval().to(options.device)
    config, chunk = flow.config, options.chunk_size
    prompt = int(options.prompt_seconds * config.frame_rate) // chunk * chunk
    num_chunks = max(1, int(options.seconds * config.frame_rate) // chunk)
    codes = torch.randint(config.codebook_size, (num_chunks * chunk + config.pre_lookahead,), device=flow.device)
    voice = {
        "prompt_codes": torch.randint(config.codebook_size, (1, prompt), device=flow.device),
        "prompt_mel": torch.randn(1, config.num_mel_bins, config.upsample_ratio * prompt, device=flow.device),
        "speaker_embeds": torch.randn(1, config.speaker_embedding_size, device=flow.device),
    }
    chunk_seconds = chunk / config.frame_rate
    kept_seconds = (prompt + num_chunks * chunk) / config.frame_rate
    print(describe())
    print(
        f"flow {sum(p.numel() for p in flow.parameters()) / 1e6:.1f} M, vocoder "
        f"{sum(p.numel() for p in vocoder.parameters()) / 1e6:.1f} M parameters on {options.device}; prompt of "
        f"{prompt} codes, {num_chunks} chunks of {chunk} codes ({chunk_seconds:g} s)"
    )

    stream(flow, vocoder, codes[: 2 * chunk + config.pre_lookahead], voice)
    runs = {
        "cached": {},
        "cached, fp16": {"cache_dtype": torch.float16},
        f"cached, past of {options.left_context}": {"left_context": options.left_context},
    }
    print(f"{'':22s} first     middle    last      s a chunk     total   state")
    results = {}
    mels = {}
    for name, settings in runs.items():
        mels[name], seconds, num_bytes = stream(flow, vocoder, codes, voice, **settings)
        results[name] = sum(seconds)
        edge = min(5, num_chunks)
        places = [seconds[:edge], seconds[(num_chunks - edge) // 2 :][:edge], seconds[-edge:]]
        values = "".join(f"{statistics.median(place):<10.3f}" for place in places)
        state = f"{num_bytes / 1e6:.0f} MB"
        if "left_context" not in settings:
            state += f", {num_bytes / kept_seconds / 1e6:.1f} MB for a second"
        print(f"{name:22s} {values}             {sum(seconds):6.1f} s   {state}")
    steps = num_chunks if options.full_recompute else min(options.samples, num_chunks)
    chunks = sorted({round(index * (num_chunks - 1) / max(1, steps - 1)) for index in range(steps)})
    timed, frames = recompute(flow, vocoder, codes, voice, chunks)
    # evenly spaced points of a curve: the ends count half
    weights = [0.5 if index in (chunks[0], chunks[-1]) and len(chunks) > 1 else 1.0 for index in chunks]
    mean = sum(w * timed[index] for w, index in zip(weights, chunks, strict=True)) / sum(weights)
    results["recomputed"] = sum(timed.values()) if options.full_recompute else mean * num_chunks
    places = (chunks[0], chunks[len(chunks) // 2], chunks[-1])
    values = "".join(f"{timed[index]:<10.3f}" for index in places)
    how = "every chunk" if options.full_recompute else f"from {len(chunks)} chunks"
    print(f"{'recomputed':22s} {values}             {results['recomputed']:6.1f} s   ({how})")
    ratio, width = results["recomputed"] / results["cached"], chunk * config.upsample_ratio
    error = max((mels["cached"][..., i * width :][..., :width] - frames[i]).abs().max().item() for i in chunks)
    print(f"recomputing takes {ratio:.1f} times as long; largest difference of the mel spectrograms {error:.1e}")
    print(
        f"real-time factor: cached {results['cached'] / (num_chunks * chunk_seconds):.2f}, recomputed "
        f"{results['recomputed'] / (num_chunks * chunk_seconds):.2f}"
    )
    return results | {"error": error}


if __name__ == "__main__":
    main()
