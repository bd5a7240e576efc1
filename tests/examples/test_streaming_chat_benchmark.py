"""benchmarks/streaming_chat.py at a size that takes no time: both sides speak the same, times are in order."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("more", [[], ["--voice_seconds", "0", "--chunk_size", "2", "--lookahead_frames", "4"]])
def test_streaming_chat_benchmark(capsys, monkeypatch, more):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_streaming_chat", BENCHMARKS / "streaming_chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = [
        "--size",
        "tiny",
        "--codes",
        "12",
        "--question_seconds",
        "0.5",
        "--voice_seconds",
        "0.6",
        "--repeats",
        "1",
    ]
    results = module.main([*small, *more])
    streamed, waited = results["streamed"], results["at the end"]
    assert 0 < streamed.encoded < streamed.first_code < streamed.first_audio <= streamed.gapless <= streamed.end
    assert waited.first_audio == waited.end
    # a chunk and three codes of look-ahead, perhaps more for the vocoder
    assert (5 if more else 8) <= streamed.codes_before <= 12
    printed = capsys.readouterr().out
    assert "codes, 0.96 s of speech" in printed or "codes, 0.88 s of speech" in printed
