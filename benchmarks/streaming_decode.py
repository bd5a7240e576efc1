"""Codes to sound while they come: seconds per chunk with caches, and with the whole prefix computed again.

    python benchmarks/streaming_decode.py
    python benchmarks/streaming_decode.py --size released --device cuda

One process, random weights, one voice, chunks of codes through flow decoder and vocoder of a codec. *Cached*: its
`streaming_decoder`, each mel frame computed once; also with keys and values in half precision, and with a bounded past
(`--left_context`). *Recomputed*: the released protocol (`compat=True`), in which the flow decodes prompt and prefix again
for every chunk; it is timed on evenly spaced chunks and scaled up, or in full with `--full_recompute`. The sound of the
first run is compared with `decode(..., streaming=True)`. The state is what has to be kept between chunks, for each second
of prompt and speech.
"""

import argparse
import statistics
import time

import torch
from machine import describe

from dualspeech import MossSpeechCodecConfig, MossSpeechCodecModel, MossSpeechVoice

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

    now = time.perf_counter

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Clock.now()

    def __enter__(self):
        self._start = self._now()

    def __exit__(self, *_):
        self.seconds.append(self._now() - self._start)


@torch.no_grad()
def make_audible(vocoder):
    """Fresh weights whisper at 1e-6: raise the gain of the last convolution, so that differences would be heard."""
    mel = torch.randn(1, vocoder.config.num_mel_bins, 20, device=vocoder.device)
    while vocoder(mel).waveform.std() < 0.02:
        vocoder.conv_post.parametrizations.weight.original0.mul_(2)


def cached(codec, codes, voice, **settings):
    """`(waveform [S], seconds of each chunk, bytes of the state at the end)`."""
    flow, clock = codec.config.flow_config, Clock(codec.device)
    session = codec.streaming_decoder(voice, **settings)
    pieces = [session.step(codes[: flow.pre_lookahead])]
    for piece in codes[flow.pre_lookahead :].split(flow.chunk_size):
        with clock:
            pieces.append(session.step(piece))
    num_bytes = session.nbytes
    return torch.cat([*pieces, session.finish()]), clock.seconds, num_bytes


def recomputed(codec, codes, voice):
    """Seconds of each chunk under the released protocol."""
    flow, clock = codec.config.flow_config, Clock(codec.device)
    session = codec.streaming_decoder(voice, compat=True)
    session.step(codes[: flow.pre_lookahead])
    for piece in codes[flow.pre_lookahead :].split(flow.chunk_size):
        with clock:
            session.step(piece)
    return dict(enumerate(clock.seconds))


def recomputed_chunks(codec, codes, voice, chunks):
    """Seconds of some chunks under the released protocol: what a session of it does, without those in between."""
    flow, clock = codec.config.flow_config, Clock(codec.device)
    chunk, lookahead, ratio = flow.chunk_size, flow.pre_lookahead, flow.upsample_ratio
    sound = codec.vocoder.overlap_stream()
    prompt = {
        "prompt_codes": [voice.prompt_codes],
        "prompt_mel": [voice.prompt_mel],
        "speaker_embeds": voice.speaker_embeds[None],
    }
    for index in chunks:
        start, end = index * chunk, (index + 1) * chunk
        with clock:
            prefix = codec.flow.decode(codes[None, : end + lookahead], streaming=True, finalize=False, **prompt)
            sound.step(prefix[..., ratio * start :])
    return dict(zip(chunks, clock.seconds, strict=True))


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
    parser.add_argument(
        "--cpu_time", action="store_true", help="seconds of the processor (all threads), on a machine with other load"
    )
    options = parser.parse_args(arguments)
    Clock.now = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    flow_fields, vocoder_fields = SIZES[options.size]
    codec = MossSpeechCodecModel(
        MossSpeechCodecConfig(
            encoder_config=None,
            speaker_config=None,
            flow_config={"initializer_range": 0.05, **flow_fields, "chunk_size": options.chunk_size},
            vocoder_config=vocoder_fields,
        )
    )
    codec = codec.eval().to(options.device)
    make_audible(codec.vocoder)
    flow, chunk = codec.config.flow_config, options.chunk_size
    prompt = int(options.prompt_seconds * codec.frame_rate) // chunk * chunk
    num_chunks = max(1, int(options.seconds * codec.frame_rate) // chunk)
    codes = torch.randint(codec.codebook_size, (num_chunks * chunk + flow.pre_lookahead,)).to(codec.device)
    voice = MossSpeechVoice(
        torch.randint(codec.codebook_size, (prompt,)),
        torch.randn(flow.num_mel_bins, flow.upsample_ratio * prompt),
        torch.randn(flow.speaker_embedding_size),
        codec.identity,
    )
    chunk_seconds = chunk / codec.frame_rate
    kept_seconds = (prompt + num_chunks * chunk) / codec.frame_rate
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (codec.flow, codec.vocoder)]
    print(describe() + ("; seconds of the processor" if options.cpu_time else ""))
    print(
        f"flow {sizes[0]:.1f} M, vocoder {sizes[1]:.1f} M parameters on {options.device}; prompt of {prompt} codes, "
        f"{num_chunks} chunks of {chunk} codes ({chunk_seconds:g} s)"
    )

    cached(codec, codes[: 2 * chunk + flow.pre_lookahead], voice)
    runs = {
        "cached": {},
        "cached, fp16": {"cache_dtype": torch.float16},
        f"cached, past of {options.left_context}": {"left_context": options.left_context},
    }
    print(f"{'s a chunk':22s} first     middle    last          total   state")
    results, error = {}, None
    for name, settings in runs.items():
        waveform, seconds, num_bytes = cached(codec, codes, voice, **settings)
        if error is None:
            error = (waveform - codec.decode(codes[None], voice=voice, streaming=True)[0, 0]).abs().max().item()
            loudness = waveform.square().mean().sqrt().item()
        results[name] = sum(seconds)
        edge = min(5, num_chunks)
        places = [seconds[:edge], seconds[(num_chunks - edge) // 2 :][:edge], seconds[-edge:]]
        values = "".join(f"{statistics.median(place):<10.3f}" for place in places)
        state = f"{num_bytes / 1e6:.0f} MB"
        if "left_context" not in settings:
            state += f", {num_bytes / kept_seconds / 1e6:.1f} MB for a second"
        print(f"{name:22s} {values} {sum(seconds):8.1f}   {state}")
    if options.full_recompute:
        timed = recomputed(codec, codes, voice)
    else:
        steps = min(options.samples, num_chunks)
        chunks = sorted({round(index * (num_chunks - 1) / max(1, steps - 1)) for index in range(steps)})
        timed = recomputed_chunks(codec, codes, voice, chunks)
    chunks = sorted(timed)
    # evenly spaced points of a curve: the ends count half
    weights = [0.5 if index in (chunks[0], chunks[-1]) and len(chunks) > 1 else 1.0 for index in chunks]
    mean = sum(w * timed[index] for w, index in zip(weights, chunks, strict=True)) / sum(weights)
    results["recomputed"] = sum(timed.values()) if options.full_recompute else mean * num_chunks
    places = (chunks[0], chunks[len(chunks) // 2], chunks[-1])
    values = "".join(f"{timed[index]:<10.3f}" for index in places)
    how = "every chunk" if options.full_recompute else f"from {len(chunks)} chunks"
    print(f"{'recomputed':22s} {values} {results['recomputed']:8.1f}   ({how})")
    print(
        f"recomputing takes {results['recomputed'] / results['cached']:.1f} times as long; largest difference of cached "
        f"chunks from one pass {error:.1e}, the waveform has a root mean square of {loudness:.1e}"
    )
    factors = (results[name] / (num_chunks * chunk_seconds) for name in ("cached", "recomputed"))
    print("real-time factor: cached {:.2f}, recomputed {:.2f}".format(*factors))
    return results | {"error": error}


if __name__ == "__main__":
    main()
