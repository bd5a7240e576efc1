"""The cache that grows in place against the one of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from dualspeech.modeling.growing_cache import GrowingCache


@pytest.mark.parametrize("block", [0, 1, 5, 256])
def test_equals_the_dynamic_cache(block):
    torch.manual_seed(0)
    growing, dynamic = GrowingCache(SimpleNamespace(num_hidden_layers=2), block), DynamicCache()
    assert growing.get_seq_length() == 0 and not growing.is_initialized
    for length in (7, 1, 1, 3, 1, 20, 1):
        assert growing.get_mask_sizes(length, 0) == (dynamic.get_seq_length() + length, 0)
        for layer in range(2):
            states = torch.randn(2, 3, length, 4), torch.randn(2, 3, length, 5)
            for ours, theirs in zip(growing.update(*states, layer), dynamic.update(*states, layer), strict=True):
                assert torch.equal(ours, theirs)
        assert growing.get_seq_length() == dynamic.get_seq_length()
    assert growing.is_initialized


def test_storage_is_copied_only_when_it_is_full():
    cache = GrowingCache(SimpleNamespace(num_hidden_layers=1), block=8)
    addresses = set()
    for _ in range(20):
        keys, _ = cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)
        addresses.add(keys.data_ptr())
    assert len(addresses) <= 3


def test_can_be_cropped_and_reset():
    cache = GrowingCache(SimpleNamespace(num_hidden_layers=1), block=4)
    first, second = torch.randn(1, 1, 6, 2), torch.randn(1, 1, 2, 2)
    cache.update(first, first, 0)
    cache.crop(-3)
    keys, _ = cache.update(second, second, 0)
    assert torch.equal(keys, torch.cat([first[:, :, :3], second], dim=2))
    cache.reset()
    keys, _ = cache.update(second, second, 0)
    assert torch.equal(keys, second)
