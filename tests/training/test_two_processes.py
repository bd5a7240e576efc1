"""Two processes (gloo) train as one does on the same global batches: DDP through the Trainer, and FSDP2."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from tests.package.running import ROOT

PARTS = {
    "dualspeech": ("text_loss", "semantic_loss", "acoustic_loss"),
    "moss": ("text_loss", "audio_loss"),
    "us_tokenizer": ("commitment_loss", "reconstruction_loss", "understanding_loss"),
}
PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

pytestmark = pytest.mark.slow


def spread_run(folder, *arguments):
    folder.mkdir()
    way = arguments[1]
    script = ["-m", "tests.training.spread_run", str(folder), *arguments]
    command = [sys.executable, *(PROCESSES if way != "single" else []), *script]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    log = [entry for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
    return log, load_file(folder / "model" / "model.safetensors")


def close(found, expected, kind):
    (log, weights), (expected_log, expected_weights) = found, expected
    assert [entry["step"] for entry in log] == [entry["step"] for entry in expected_log]
    for entry, other in zip(log, expected_log, strict=True):
        for name in ("loss", "grad_norm", *PARTS[kind]):
            assert entry[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.fixture(scope="module", params=list(PARTS))
def single(request, tmp_path_factory):
    kind = request.param
    return kind, spread_run(tmp_path_factory.mktemp(kind) / "single", kind, "single")


def test_ddp_equals_one_process_and_its_checkpoint_goes_on_in_one(single, tmp_path):
    kind, expected = single  # for the USTokenizer the codebook is among the weights
    close(spread_run(tmp_path / "ddp", kind, "ddp"), expected, kind)
    half = str(tmp_path / "ddp" / "checkpoint-2")
    close(spread_run(tmp_path / "resumed", kind, "single", half), expected, kind)


def test_fsdp2_equals_one_process_and_what_it_saves_loads_in_one(single, tmp_path):
    kind, expected = single
    if kind == "us_tokenizer":
        pytest.skip("the quantiser keeps its state in buffers, which FSDP does not shard")
    close(spread_run(tmp_path / "fsdp", kind, "fsdp"), expected, kind)
    auto_class = {"dualspeech": AutoModelForMultimodalLM, "moss": AutoModelForCausalLM}[kind]
    model, info = auto_class.from_pretrained(tmp_path / "fsdp" / "model", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[1][name], atol=1e-4, rtol=1e-3, msg=name)
