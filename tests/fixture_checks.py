"""Comparison with the recorded outputs of the reference modules (`tests/fixtures`, see `seeded.py` there)."""

import importlib.util
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent / "fixtures"

_spec = importlib.util.spec_from_file_location("dualspeech_test_seeded", FIXTURES / "seeded.py")
seeded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded)


def load(name: str, part: str = "model"):
    """`(state_dict, tensors, meta)` of the fixture `name`."""
    return seeded.load(FIXTURES / name, part)


def check(actual, name, tensors, meta):
    """Fail unless `actual` equals the recorded tensor `name` within the tolerance of the fixture."""
    expected, tolerance = tensors[name], meta["tolerances"].get(name, meta["tolerances"]["default"])
    assert tuple(actual.shape) == tuple(expected.shape), (name, tuple(actual.shape), tuple(expected.shape))
    if not expected.is_floating_point():
        assert torch.equal(actual.long(), expected.long()), name
        return
    error = (actual.float() - expected).abs()
    limit = tolerance["atol"] + tolerance["rtol"] * expected.abs()
    assert bool((error <= limit).all()), (name, float(error.max()))
