"""Seconds of speech that become token rows per second: `TokenizeTasks` over batches of 1, 4 and 16 rows.

    python benchmarks/tokenize_rows.py --threads 1 --cpu_time

Random weights at the given size: an encoder as wide as Whisper's (base by default), the codec and the speaker encoder of
the release. Rows are tts rows, so that all three parts run, with recordings of 1 to `--seconds` seconds in no order; what
is measured is the step with reading, checking and resampling, after one warm-up batch.
"""

import argparse
import io
import tempfile
import time

import numpy as np
import soundfile
import torch
from machine import describe
from transformers import PreTrainedTokenizerFast

from dualspeech import (
    CamPPlusConfig,
    DualSpeechFeatureExtractor,
    DualSpeechProcessor,
    DualTokenizerConfig,
    DualTokenizerModel,
)
from dualspeech.processing.tokenization_dualspeech import extend_tokenizer
from dualspeech.training.data_steps.step import apply_step, batches
from dualspeech.training.data_steps.tokenization import TokenizeTasks


def save_processor(folder: str, width: int, layers: int) -> int:
    """A processor with random weights; the number of parameters of its audio tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    symbols = ["<s>", "</s>", "\n", *map(chr, range(32, 127))]
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    extend_tokenizer(tokenizer, 1024)
    encoder = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": 8, "encoder_ffn_dim": 4 * width}
    semantic = {"model_type": "us_tokenizer", "encoder_config": encoder, "hidden_size": width}
    codec = {"model_type": "dualspeech_wavtokenizer"}
    model = DualTokenizerModel(
        DualTokenizerConfig(semantic_config=semantic, codec_config=codec, speaker_config=CamPPlusConfig())
    )
    DualSpeechProcessor(DualSpeechFeatureExtractor(), tokenizer, audio_tokenizer=model).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_rows(count: int, seconds: float) -> tuple[list[dict], float]:
    """Rows with noise in FLAC of 24 kHz, and the seconds of all of them."""
    draw, rows, total = np.random.default_rng(0), [], 0.0
    for length in draw.uniform(1, seconds, count):
        file = io.BytesIO()
        soundfile.write(file, 0.1 * draw.standard_normal(round(length * 24000)), 24000, format="FLAC")
        rows.append({"task": "tts", "text": "what is said", "targets": {"audio": {"bytes": file.getvalue()}}})
        total += length
    return rows, total


def main(arguments: list[str] | None = None) -> dict[int, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="the longest recording")
    parser.add_argument("--width", type=int, default=512, help="of the speech encoder")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, help="threads of torch; its own default when omitted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cpu_time", action="store_true", help="count processor time, for machines with other load")
    parser.add_argument("--repeats", type=int, default=2, help="the best of that many runs counts")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.process_time if options.cpu_time else time.perf_counter
    rows, total = make_rows(options.rows, options.seconds)
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        size = save_processor(folder, options.width, options.layers)
        step = TokenizeTasks(folder, device=options.device, dtype=options.dtype)
        step.setup()
    print(describe())
    print(f"{size / 1e6:.1f} M parameters, {options.rows} rows, {total:.0f} s of speech, {options.device}")
    for batch_size in options.batch_sizes:
        apply_step(step, rows[:batch_size])
        times = []
        for _ in range(options.repeats):
            start = clock()
            outcomes = [outcome for batch in batches(rows, batch_size) for outcome in apply_step(step, batch)]
            times.append(clock() - start)
        if not all(isinstance(outcome, list) for outcome in outcomes):
            raise RuntimeError(f"rows were rejected: {outcomes[0]}")
        speeds[batch_size] = total / min(times)
        print(
            f"batch {batch_size:3d}   {len(rows) / min(times):7.2f} rows/s   {speeds[batch_size]:8.1f} s of speech per "
            f"second, {speeds[batch_size] / speeds[options.batch_sizes[0]]:.2f} times the first"
        )
    return speeds


if __name__ == "__main__":
    main()
