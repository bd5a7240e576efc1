"""Settings of the test run: offline, few threads, and uninitialised memory filled with NaN."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

import dualspeech  # noqa: F401  (registers the classes)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
