"""Launch files: accelerate and the Trainer's DeepSpeed integration take them as they are."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import TrainingArguments
from transformers.integrations import deepspeed

from dualspeech.training.recipe import RECIPES, parse_arguments
from tests.examples.running import EXAMPLES, load_example

LAUNCH = RECIPES.parent / "launch"
FILES = sorted(path.name for path in LAUNCH.glob("*.yaml"))


def launch_arguments(name, *arguments) -> argparse.Namespace:
    """What `accelerate launch --config_file` makes of a file."""
    parsed = launch_command_parser().parse_args(["--config_file", str(LAUNCH / name), *arguments, "script.py"])
    return _validate_launch_command(parsed)[0]


def test_there_are_all_files():
    assert FILES == ["cpu.yaml", "fsdp2.yaml", "multi_gpu.yaml", "zero2.yaml", "zero3.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_files_say_how_to_use_them(name):
    lines = (LAUNCH / name).read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert any(f"accelerate launch --config_file training/launch/{name}" in line for line in header)
    assert (
        EXAMPLES / next(word for line in header for word in line.split() if word.endswith(".py")).split("/")[1]
    ).is_file()


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("cpu.yaml", "MULTI_GPU", 2),
        ("multi_gpu.yaml", "MULTI_GPU", 4),
        ("fsdp2.yaml", "FSDP", 8),
        ("zero2.yaml", "DEEPSPEED", 4),
        ("zero3.yaml", "DEEPSPEED", 4),
    ],
)
def test_accelerate_takes_them(name, kind, processes):
    config = load_config_from_file(str(LAUNCH / name))
    assert config.distributed_type.value == kind and config.num_processes == processes
    assert launch_arguments(name).num_processes == processes
    assert launch_arguments(name, "--num_processes", "16").num_processes == 16


def test_fsdp2_shards_layer_by_layer(monkeypatch):
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2.yaml"))
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT" and not plugin.cpu_ram_efficient_loading
    tiny = load_example("tiny_moss_speech")
    model = tiny.tiny_moss_model(tiny.tiny_moss_tokenizer())
    plugin.set_auto_wrap_policy(model)
    wrapped = [
        name
        for name, module in model.named_modules()
        if plugin.auto_wrap_policy(module, recurse=False, nonwrapped_numel=0)
    ]
    blocks = {"shared_block": 2, "text_block": 1, "audio_block": 1}
    assert wrapped == [f"model.{block}.layers.{i}" for block, count in blocks.items() for i in range(count)]


def test_layer_classes_of_the_other_models_exist():
    """The classes that the header of `fsdp2.yaml` names."""
    header = (LAUNCH / "fsdp2.yaml").read_text()
    tiny = load_example("tiny_dualspeech")
    model = tiny.tiny_model(tiny.tiny_tokenizer())
    found = {type(module).__name__ for module in model.modules()}
    assert {"LlamaDecoderLayer", "AcousticGPTDecoderLayer"} <= found
    assert "LlamaDecoderLayer,AcousticGPTDecoderLayer" in header
    assert "Phi3DecoderLayer,AcousticGPTDecoderLayer" in header
    assert set(model._no_split_modules) == {"LlamaDecoderLayer", "AcousticGPTDecoderLayer"}


class TrainerConfig(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """The Trainer's class on that of accelerate, as it is where deepspeed is installed."""


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_values_are_those_of_the_script(name, stage, monkeypatch, tmp_path):
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda package: None)
    arguments = launch_arguments(f"{name}.yaml")
    assert arguments.deepspeed_config_file == f"training/launch/{name}.json"
    tiny = load_example("tiny_dualspeech")
    model = tiny.tiny_model(tiny.tiny_tokenizer())
    config = TrainerConfig(str(LAUNCH / f"{name}.json"))
    try:
        assert config.is_zero2() == (stage == 2) and config.is_zero3() == (stage == 3)
        training = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=6, gradient_accumulation_steps=12, max_grad_norm=1.0, bf16=True,
            use_cpu=True, report_to="none", learning_rate=1e-4,
        )  # fmt: skip
        config.trainer_config_process(training)
        config.trainer_config_finalize(training, model, num_training_steps=10)
        filled = config.config
        assert filled["train_batch_size"] == 72 and filled["train_micro_batch_size_per_gpu"] == 6
        assert filled["gradient_clipping"] == 1.0 and filled["bf16"]["enabled"] and not filled["fp16"]["enabled"]
        assert config.dtype() == torch.bfloat16
        assert '"auto"' not in json.dumps(filled)
        # Ours are used: the schedule of layerwise unfreezing has one rate per group.
        assert "optimizer" not in filled and "scheduler" not in filled
    finally:
        deepspeed.unset_hf_deepspeed_config()


@pytest.mark.slow
def test_processes_on_the_cpu_train_together(tmp_path):
    command = ["-m", "accelerate.commands.launch", "--config_file", "training/launch/cpu.yaml", "--num_processes", "2"]
    script = ["examples/train_moss_speech.py", "--recipe", "moss_stage2_layerwise", "--tiny", "--use_cpu"]
    options = ["--output_dir", str(tmp_path), "--max_steps", "10", "--save_strategy", "no", "--disable_tqdm", "true"]
    run = subprocess.run(
        [sys.executable, *command, *script, *options], cwd=EXAMPLES.parent, capture_output=True, text=True, check=True
    )
    assert "global batch: 2 = 1 per device x 2 processes x 1 accumulated" in run.stdout
    assert run.stdout.count("recipe: moss_stage2_layerwise (tiny)") == run.stdout.count("evaluation loss") == 1
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "processor_config.json").is_file()


def test_paths_hold_in_the_root_of_the_repository():
    for name in ("zero2.yaml", "zero3.yaml"):
        assert os.path.isfile(EXAMPLES.parent / launch_arguments(name).deepspeed_config_file)


def test_recipes_fit_the_numbers_of_processes(monkeypatch):
    """The global batches can be made by the processes of the launch files."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: self._world), raising=True)
    for recipe, script, processes in (
        ("us_tokenizer", "train_us_tokenizer", (1, 2, 4, 8)),
        ("dualspeech", "train_dualspeech", (1, 2, 3, 4, 6, 12)),
        ("moss_stage1", "train_moss_speech", (1, 2, 4, 8)),
        ("moss_stage2_full", "train_moss_speech", (1, 8, 16, 32, 64)),
        ("moss_sft", "train_moss_speech", (1, 2, 4, 8)),
    ):
        module = load_example(script)
        groups = [
            value for name, value in vars(module).items() if name.endswith("Arguments") and isinstance(value, type)
        ]
        for world in processes:
            monkeypatch.setattr(TrainingArguments, "_world", world, raising=False)
            parsed = parse_arguments(script, groups, ["--recipe", recipe, "--output_dir", "unused", "--use_cpu"])
            training = next(value for value in parsed if isinstance(value, TrainingArguments))
            batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * world
            assert batch == parsed[-1].global_batch_size, (recipe, world)
