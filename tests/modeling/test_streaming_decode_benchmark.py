"""benchmarks/streaming_decode.py at a size that takes no time."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("extra", [[], ["--full_recompute", "--chunk_size", "3"]])
def test_streaming_decode_benchmark(capsys, monkeypatch, extra):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_streaming_decode", BENCHMARKS / "streaming_decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = [
        "--size",
        "tiny",
        "--seconds",
        "1.7",
        "--prompt_seconds",
        "0.5",
        "--left_context",
        "4",
        "--samples",
        "2",
    ]
    results = module.main(arguments + extra)
    assert results["error"] < 1e-4 and {"cached", "cached, past of 4", "recomputed"} < results.keys()
    assert "MB for a second" in capsys.readouterr().out
