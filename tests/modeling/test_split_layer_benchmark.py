"""benchmarks/split_layer.py at a size that takes no time."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_layer_benchmark(capsys, monkeypatch, dtype):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_split_layer", BENCHMARKS / "split_layer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"--layers": "2 1", "--width": "64", "--vocabularies": "90 40", "--prompt": "5", "--rows": "3"}
    arguments = [part for name, values in sizes.items() for part in (name, *values.split())]
    results = module.main([*arguments, "--batches", "1", "2", "--dtype", dtype])
    sys.modules.pop("machine", None)
    assert set(results) == {1, 2} and "ms/row" in capsys.readouterr().out
    for result in results.values():
        assert result["step"]["lazy"] > 0 and result["generate"]["both"] > 0
    layer = 4 * 64 * 64 + 2 * 64 + 2 * 64 + 3 * 64 * 192  # one head: q, k, v, o, norms of q and k, norms, MLP
    size = 4 if dtype == "float32" else 2
    rows = 2 * 64 * (5 + 1.5) * size
    for batch, result in results.items():
        lazy = size * (3 * layer + 64 + 40 * 64) + batch * 3 * rows
        assert result["bytes"]["lazy"] == lazy
        assert result["bytes"]["both"] == lazy + size * (layer + 64 + 90 * 64) + batch * rows
        assert result["bytes"]["ratio"] == pytest.approx(lazy / result["bytes"]["both"])
