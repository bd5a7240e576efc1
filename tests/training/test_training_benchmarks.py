"""The benchmarks of training run, and what they count is right."""

import importlib.util
import sys

import pytest

from tests.package.running import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("machine", "training_models"):
        sys.modules.pop(name, None)


def test_packing(benchmark, capsys):
    module = benchmark("packing")
    results = module.main(
        ["--width", "128", "--layers", "2", "--context", "64", "--rows", "40", "--batch", "4", "--threads", "1"]
    )
    for ways in results.values():
        assert set(ways) == set(module.WAYS)
        assert 0 < ways["padded"]["fill"] < min(ways["bucketed"]["fill"], ways["packed"]["fill"]) <= 1
        assert all(way["tokens_per_second"] > 0 for way in ways.values())
    assert "split_layer  packed" in capsys.readouterr().out


def test_training_step(benchmark, capsys):
    module = benchmark("train_step")
    results = module.main(
        [
            "--width",
            "128",
            "--layers",
            "4",
            "--branch",
            "1",
            "--batch",
            "2",
            "--length",
            "64",
            "--steps",
            "1",
            "--threads",
            "1",
        ]
    )
    assert results["split layer"]["flops"] < results["split layer, logits"]["flops"]
    # One layer more in four, and the heads: more than the plain model, by less than a half.
    assert 1 < results["split layer, logits"]["flops"] < 1.5 < results["DualSpeech"]["flops"]
    assert "overhead" in capsys.readouterr().out


def test_attention_on_a_cpu_is_counted(benchmark):
    module = benchmark("train_step")
    model = module.plain(128, 1, 100)
    counted = []
    for length in (32, 64):
        ids = module.torch.randint(5, 100, (1, length))
        counted.append(module.flops(model, {"input_ids": ids, "labels": ids}))
    assert counted[1] > 2 * counted[0]  # what does not grow linearly
