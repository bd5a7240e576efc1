"""A run killed between two saves and resumed: the same parameters, bit for bit, and the same log, as if nothing happened."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.package.running import ROOT

pytestmark = pytest.mark.slow

# Runs examples/<script>.py; at step `kill_at` the process ends as if its machine had failed.
RUN = """
import os, runpy, signal, sys
import transformers.trainer
from transformers import TrainerCallback

script, kill_at, *arguments = sys.argv[1:]


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)


transformers.trainer.DEFAULT_CALLBACKS.append(Kill)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""

MIXED = ["--packing", "--context_length", "256", "--gradient_accumulation_steps", "2"]
RUNS = {
    "dualspeech": (
        "train_dualspeech",
        [
            "--recipe",
            "dualspeech",
            "--weights",
            "asr=0.3,tts=0.3,vc=0.2,t2st=0.2,sc=0.1,sqa=0.2,s2tt=0.2,ser=0.1",
            *MIXED,
        ],
    ),
    "campplus": ("train_speaker_encoder", ["--recipe", "campplus", "--eval_strategy", "steps", "--tiny_rows", "15"]),
    "us_tokenizer": ("train_us_tokenizer", ["--recipe", "us_tokenizer", "--gradient_accumulation_steps", "2"]),
    "vocoder": ("train_vocoder", ["--recipe", "hift_small", "--gradient_accumulation_steps", "2"]),
    "stage2": ("train_moss_speech", ["--recipe", "moss_stage2_full", *MIXED]),
    "stage2_layerwise": ("train_moss_speech", ["--recipe", "moss_stage2_layerwise", *MIXED]),
}
COMMON = [
    "--tiny",
    "--use_cpu",
    "--max_steps",
    "11",
    "--save_strategy",
    "steps",
    "--save_steps",
    "4",
    "--logging_steps",
    "3",
    "--eval_steps",
    "5",
    "--seed",
    "7",
    "--per_device_train_batch_size",
    "2",
]
# What a clock decides, and what sums up one process.
NOT_COMPARED = ("runtime", "per_second", "train_loss", "total_flos")


def run(script, folder, arguments, kill_at=-1, expected=0):
    command = [sys.executable, "-c", RUN, str(ROOT / "examples" / f"{script}.py"), str(kill_at), *COMMON, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run(
        [*command, "--output_dir", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == expected, done.stderr[-4000:]


def log_of(folder):
    (state,) = [json.loads(path.read_text()) for path in (folder / "checkpoint-11").glob("trainer_state.json")]
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in NOT_COMPARED)}
        for entry in state["log_history"]
        if "train_runtime" not in entry
    ]


@pytest.mark.parametrize("name", list(RUNS))
def test_killed_and_resumed_equals_uninterrupted(name, tmp_path):
    script, arguments = RUNS[name]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(script, whole, arguments)
    run(script, broken, arguments, kill_at=6, expected=-signal.SIGKILL)
    assert {path.name for path in broken.glob("checkpoint-*")} == {"checkpoint-4"}
    (broken / "checkpoint-5").mkdir()  # as a run leaves it that is killed while it saves
    run(script, broken, [*arguments, "--resume_from_checkpoint", "auto"])

    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors") if "checkpoint-4" not in path.parts]
    assert any("checkpoint-11" in path.parts for path in files)
    for path in files:
        expected, found = load_file(whole / path), load_file(broken / path)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{path}: {key}"
    expected, found = log_of(whole), log_of(broken)
    losses = [entry for entry in expected if "loss" in entry]
    assert [entry["step"] for entry in losses] == [3, 4, 6, 8, 9, 11]
    assert [entry for entry in found if "loss" in entry] == losses
    assert found == expected  # evaluations too
