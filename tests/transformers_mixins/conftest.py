"""Marks of the mixins; distributed and long tests are slow; the tables that the mixins look our classes up in."""

import pytest

from .registration import MAPPING_NAMES, named

collect_ignore = ["stand_ins"]

MARKS = (
    "accelerate_tests all_flash_attn_test bitsandbytes flash_attn_3_test flash_attn_4_test flash_attn_test generate "
    "is_expert_parallel_test is_fsdp_test is_tensor_parallel_test is_training_test torch_compile_test torch_export_test"
)
# The first loads a model 14 times and compares each parameter of each as a test of its own.
LONG = ("test_bc_torch_dtype", "test_training_overfit")
DISTRIBUTED = ("test_fsdp2_", "test_hsdp_", "test_tp_forward", "test_tp_backward", "test_tp_generation")


def pytest_configure(config):
    for mark in MARKS.split():
        config.addinivalue_line("markers", f"{mark}: from the test mixins of transformers")


def pytest_itemcollected(item):
    if item.name.startswith((*DISTRIBUTED, *LONG)):
        item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _tables():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for auto_class, table in MAPPING_NAMES.items():
            for model_type, name in named(auto_class).items():
                monkeypatch.setitem(table, model_type, name)
        yield
