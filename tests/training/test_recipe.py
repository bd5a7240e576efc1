"""Recipes: their layout, who wins over whom, and the arithmetic of the global batch."""

from dataclasses import dataclass, field, fields, make_dataclass

import pytest
import yaml
from transformers import TrainingArguments

from dualspeech.training.recipe import (
    RECIPES,
    RecipeArguments,
    accumulation_steps,
    parse_arguments,
    read_recipe,
    recipe_names,
    started_processes,
)


@dataclass
class OwnArguments:
    colour: str = field(default="red")
    size: int | None = field(default=None)


def write(folder, arguments, name="mine.yaml", script="train_it"):
    path = folder / name
    path.write_text(yaml.safe_dump({"script": script, "description": "a test", "arguments": arguments}))
    return str(path)


def parse(*arguments, **kwargs):
    fixed = ("--output_dir", "unused", "--use_cpu", "--report_to", "none")
    return parse_arguments("train_it", (OwnArguments, TrainingArguments), [*fixed, *map(str, arguments)], **kwargs)


def test_who_wins(tmp_path):
    recipe = write(tmp_path, {"colour": "green", "size": 2, "max_steps": 500, "learning_rate": 1e-4})
    defaults = {"size": 1, "max_steps": 7, "logging_steps": 3}
    tiny = {"size": 3, "learning_rate": 1e-2}
    own, training, chosen = parse(defaults=defaults)
    assert (own.colour, own.size, training.max_steps, training.logging_steps) == ("red", 1, 7, 3)
    assert chosen.recipe is None and not chosen.tiny
    own, training, chosen = parse("--recipe", recipe, defaults=defaults, tiny=tiny)
    assert (own.colour, own.size, training.max_steps, training.logging_steps) == ("green", 2, 500, 3)
    own, training, chosen = parse("--recipe", recipe, "--tiny", defaults=defaults, tiny=tiny)
    assert (own.colour, own.size, training.max_steps, training.learning_rate) == ("green", 3, 20, 1e-2)
    own, training, _ = parse("--recipe", recipe, "--tiny", "--size", 4, "--max_steps", 2, tiny=tiny)
    assert (own.size, training.max_steps) == (4, 2)


def test_global_batch_size(tmp_path):
    recipe = write(tmp_path, {"global_batch_size": 72, "per_device_train_batch_size": 6})
    assert parse("--recipe", recipe)[1].gradient_accumulation_steps == 12
    assert parse("--recipe", recipe, "--per_device_train_batch_size", 8)[1].gradient_accumulation_steps == 9
    assert parse("--recipe", recipe, "--tiny")[1].gradient_accumulation_steps == 1
    with pytest.raises(ValueError, match=r"`global_batch_size` 72 is no multiple of .* 7 times 1 processes"):
        parse("--recipe", recipe, "--per_device_train_batch_size", 7)
    assert accumulation_steps(72, 6, 4) == 3 and accumulation_steps(8, 8, 1) == 1
    for batch, device, world in ((72, 6, 5), (4, 8, 1), (0, 1, 1)):
        with pytest.raises(ValueError, match="global_batch_size"):
            accumulation_steps(batch, device, world)


def test_processes_that_would_train_alone(monkeypatch):
    assert started_processes() == 1
    monkeypatch.setattr("dualspeech.training.recipe.started_processes", lambda: 2)
    with pytest.raises(ValueError, match="2 processes were started, but each would train alone: give --use_cpu"):
        parse()


def test_bad_recipes(tmp_path):
    with pytest.raises(ValueError, match=r"`recipe` 'moss_stage3' does not exist; accepted are .*moss_stage1"):
        read_recipe("moss_stage3")
    with pytest.raises(ValueError, match="does not exist"):
        read_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(ValueError, match=r"arguments that train_it.py does not take: \['colr', 'lr'\]"):
        parse("--recipe", write(tmp_path, {"colr": "green", "lr": 1}))
    with pytest.raises(ValueError, match=r"is for examples/train_other\.py, not for train_it\.py"):
        parse("--recipe", write(tmp_path, {}, script="train_other"))
    for number, text in enumerate(
        ("- a\n- b\n", "script: x\narguments: {}\n", "script: x\ndescription: y\narguments: 3\n")
    ):
        path = tmp_path / f"bad{number}.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match="must be a mapping with exactly"):
            read_recipe(str(path))
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is no YAML"):
        read_recipe(str(path))


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_has_a_source(name):
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    arguments = lines[lines.index("arguments:") + 1 :]
    assert [line for line in arguments if line.strip() and "# " not in line] == []
    assert read_recipe(name)


def test_epochs_that_are_given_win_over_steps_that_are_not(tmp_path):
    epochs = write(tmp_path, {"num_train_epochs": 2})
    defaults = {"max_steps": 7}
    assert parse(defaults=defaults)[1].max_steps == 7
    training = parse("--recipe", epochs, defaults=defaults)[1]
    assert (training.max_steps, training.num_train_epochs) == (-1, 2)
    assert parse("--recipe", epochs, "--max_steps", 3, defaults=defaults)[1].max_steps == 3
    assert parse("--recipe", epochs, "--tiny", defaults=defaults)[1].max_steps == 20
    assert parse("--num_train_epochs", 4, defaults=defaults)[1].max_steps == -1
    assert parse("--num_train_epochs=4", "--tiny", defaults=defaults)[1].max_steps == -1
    assert parse("--num_train_epochs", 4, "--max_steps", 3, defaults=defaults)[1].max_steps == 3


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_say_how_long_they_train(name):
    arguments = read_recipe(name)
    assert ("max_steps" in arguments) != ("num_train_epochs" in arguments)
    script = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["script"]
    fixed = ["--output_dir", "unused", "--use_cpu", "--report_to", "none", "--bf16", "false"]
    known = {entry.name for entry in (*fields(TrainingArguments), *fields(RecipeArguments))}
    own = make_dataclass("Own", [(key, str | None, field(default=None)) for key in arguments if key not in known])
    training = parse_arguments(
        script, (own, TrainingArguments), [*fixed, "--recipe", name], defaults={"max_steps": 60}
    )[1]
    assert training.max_steps == arguments.get("max_steps", -1)
