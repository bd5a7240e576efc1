"""Time to first audio and real-time factor of a spoken answer, end to end, on a random MOSS-Speech of a chosen size.

    python benchmarks/streaming_chat.py
    python benchmarks/streaming_chat.py --size released --device cuda --dtype bfloat16 --codes 250
    python benchmarks/streaming_chat.py --size released --device cuda --dtype bfloat16 --static --side_stream

A recording is encoded, the language model answers in speech, and the codec decodes the answer while it is generated (the
two take turns on one device; with `--side_stream` the codec has a CUDA stream of its own). The clock starts when the
recording is there. Beside it, in the same process: the same answer generated first and decoded afterwards at once, as the
released code does. Both sides sample with the same seed, so the codes are equal; weights are random, and the end of speech
is held back, so that every answer has the same length.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from machine import describe

from dualspeech import (
    MossSpeechCodecConfig,
    MossSpeechCodecModel,
    SplitLayerQwen3Config,
    SplitLayerQwen3ForCausalLM,
)
from dualspeech.modeling.split_layer_streamers import SpeechStreamer

IDS = {
    "vocab_size": 2000,
    "modality_pad_token_id": 1999,
    "sosp_token_id": 1998,
    "eos_token_id": 1997,
    "pad_token_id": 1996,
}
# Fields of the language model, and of encoder, flow and vocoder; what is not said is as released.
SIZES = {
    "tiny": (
        IDS
        | {"hidden_size": 128, "intermediate_size": 384, "num_shared_layers": 2, "num_modality_layers": 1}
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
        {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 1}
        | {"num_upsampled_layers": 1, "estimator_channels": 32, "estimator_num_heads": 2, "estimator_head_dim": 16}
        | {"estimator_num_layers": 1, "estimator_num_mid_stages": 1, "num_timesteps": 3},
        {"upsample_initial_channel": 32, "f0_hidden_size": 32},
    ),
    "mid": (
        IDS
        | {"hidden_size": 512, "intermediate_size": 1536, "num_shared_layers": 8, "num_modality_layers": 2}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
        {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024},
        {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 3}
        | {"num_upsampled_layers": 2, "estimator_channels": 96, "estimator_num_heads": 4, "estimator_head_dim": 24}
        | {"estimator_num_layers": 1, "estimator_num_mid_stages": 4, "num_timesteps": 5},
        {"upsample_initial_channel": 128, "f0_hidden_size": 128},
    ),
    "released": ({}, {}, {}, {}),
}


@dataclass
class Times:
    """Seconds from the question to its codes, to the first code of the answer, to the first sound, to when playing can
    begin without running dry later, and to the end; the codes that were there with the first sound, and its seconds."""

    encoded: float
    first_code: float
    first_audio: float
    gapless: float
    end: float
    codes_before: int
    first_piece: float


def build(options) -> tuple[SplitLayerQwen3ForCausalLM, MossSpeechCodecModel]:
    model_fields, encoder, flow, vocoder = SIZES[options.size]
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    with device:  # random numbers for billions of weights take minutes on a CPU
        model = SplitLayerQwen3ForCausalLM._from_config(SplitLayerQwen3Config(**model_fields), dtype=dtype)
    config = MossSpeechCodecConfig(encoder_config=encoder, flow_config=flow, vocoder_config=vocoder)
    codec = MossSpeechCodecModel(config)
    return model.to(device).eval(), codec.to(device).eval()


class Benchmark:
    def __init__(self, options):
        self.options, self.device = options, torch.device(options.device)
        self.model, self.codec = build(options)
        generator = torch.Generator().manual_seed(1)
        rate = self.codec.input_sampling_rate
        self.question = 0.1 * torch.randn(1, round(options.question_seconds * rate), generator=generator)
        self.voice = None
        if options.voice_seconds:
            recording = 0.1 * torch.randn(round(options.voice_seconds * rate), generator=generator)
            chunk = options.chunk_size or self.codec.config.flow_config.chunk_size
            self.voice = self.codec.make_voice(recording, rate).trim(multiple_of=chunk)
        self.session = self.codec.streaming_decoder(
            self.voice, options.chunk_size, options.left_context, lookahead_frames=options.lookahead_frames
        )
        self.stream = torch.cuda.Stream() if options.side_stream else None
        self.settings = {
            "do_sample": True,
            "top_k": 20,
            "temperature": 0.7,
            "max_new_tokens": options.codes,
            "min_new_tokens": options.codes,  # no end before that
            **({"cache_implementation": "static"} if options.static else {}),
        }

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def prompt(self) -> torch.Tensor:
        """Rows of a chat: a system prompt in text, the question in speech, the beginning of a spoken answer."""
        config = self.model.config
        codes = self.codec.encode_waveform(self.question.to(self.device)).codes[0].tolist()
        text = torch.arange(1, self.options.system_rows + 1).tolist()
        rows = [[token, config.audio_pad_token_id] for token in [*text, config.sosp_token_id]]
        rows += [[config.modality_pad_token_id, code] for code in [*codes, config.eosp_token_id]]
        rows += [[token, config.audio_pad_token_id] for token in [*text[:5], config.sosp_token_id]]
        return torch.tensor([rows], device=self.device)

    def streamed(self) -> tuple[Times, list[int], int]:
        """Times, codes, samples."""
        torch.manual_seed(0)
        start = self.clock()
        rows = self.prompt()
        encoded = self.clock() - start
        streamer = SpeechStreamer(self.model.config, chunk_size=1)
        decoder, codes, samples = self.session.new_session(), [], 0
        first_code, first, gapless = None, None, 0.0
        streamer.start(self.model.generate, input_ids=rows, **self.settings)
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            for event in streamer:
                if event.channel == "text":
                    continue
                first_code = time.perf_counter() - start if first_code is None else first_code
                codes += event.ids.tolist()
                pieces = [decoder.step(event.ids)] if len(event.ids) else []
                pieces += [decoder.finish()] if event.ends_speech else []
                for piece in pieces:
                    length = len(piece.cpu())  # the sound has left the device
                    if not length:
                        continue
                    now = time.perf_counter() - start
                    first = (now, len(codes), length / self.codec.sampling_rate) if first is None else first
                    gapless = max(gapless, now - samples / self.codec.sampling_rate)
                    samples += length
        times = Times(encoded, first_code, first[0], gapless, self.clock() - start, *first[1:])
        return times, codes, samples

    def waited(self) -> tuple[Times, list[int], int]:
        """The same with generation first and decoding afterwards."""
        torch.manual_seed(0)
        start = self.clock()
        rows = self.prompt()
        encoded = self.clock() - start
        output = self.model.generate(input_ids=rows, **self.settings)
        generated = self.clock() - start
        codes = output.speech_codes[:, : int(output.speech_lengths[0])]
        waveform = self.codec.decode(codes, voice=self.voice).cpu()
        end = self.clock() - start
        seconds = waveform.shape[-1] / self.codec.sampling_rate
        times = Times(encoded, generated, end, end, end, codes.shape[1], seconds)
        return times, codes[0].tolist(), waveform.shape[-1]


def main(arguments: list[str] | None = None) -> dict[str, Times]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the language model; the codec is float32")
    parser.add_argument("--codes", type=int, default=100, help="length of the answer; 12.5 codes are a second")
    parser.add_argument("--question_seconds", type=float, default=3.0)
    parser.add_argument("--system_rows", type=int, default=25, help="text rows in front of the question")
    parser.add_argument("--voice_seconds", type=float, default=3.2, help="recording of the voice; 0 for none")
    parser.add_argument("--chunk_size", type=int, help="codes per chunk; 5 as released by default")
    parser.add_argument("--left_context", type=int, help="codes of the past that a chunk sees; all by default")
    parser.add_argument("--lookahead_frames", type=int, help="frames the vocoder waits for; as it takes to be exact")
    parser.add_argument("--static", action="store_true", help="static cache (compiled on a GPU)")
    parser.add_argument("--side_stream", action="store_true", help="the codec on a CUDA stream of its own")
    parser.add_argument(
        "--repeats", type=int, default=3, help="medians of so many runs, behind one that does not count"
    )
    options = parser.parse_args(arguments)
    print(describe() + (f"; {torch.cuda.get_device_name()}" if options.device.startswith("cuda") else ""))
    benchmark = Benchmark(options)
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (benchmark.model, benchmark.codec)]
    rate = benchmark.codec.sampling_rate
    print(f"language model {sizes[0]:.1f} M parameters ({options.dtype}), codec {sizes[1]:.1f} M")
    print(
        f"{'ms':10} {'encode':>8} {'first code':>10} {'first audio':>11} {'gapless':>8} {'end':>8} {'codes/s':>8} {'RTF':>5}"
    )
    results, reference = {}, None
    for name, run in (("streamed", benchmark.streamed), ("at the end", benchmark.waited)):
        runs = [run() for _ in range(options.repeats + 1)][1:]
        _, codes, samples = runs[0]
        if reference is not None and codes != reference:
            raise RuntimeError("both sides must speak the same codes")
        reference = codes
        medians = Times(*(statistics.median(getattr(t, f) for t, *_ in runs) for f in Times.__dataclass_fields__))
        results[name] = medians
        milliseconds = [1000 * value for value in vars(medians).values()][:5]
        speed = len(codes) / (medians.end - medians.encoded), medians.end * rate / samples
        print("{:10} {:8.0f} {:10.0f} {:11.0f} {:8.0f} {:8.0f} {:8.1f} {:5.2f}".format(name, *milliseconds, *speed))
    first = results["streamed"]
    print(
        f"{len(codes)} codes, {samples / rate:.2f} s of speech; the first sound came with code {first.codes_before:.0f} "
        f"and lasts {1000 * first.first_piece:.0f} ms"
    )
    return results


if __name__ == "__main__":
    main()
