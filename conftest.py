"""Settings of the test run: offline, one thread, uninitialised memory filled with NaN, seeded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import dualspeech  # noqa: F401  (registers the classes)


def pytest_configure():
    # `torch.empty` then gives NaN, so a weight or buffer that nothing initialises is noticed
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
