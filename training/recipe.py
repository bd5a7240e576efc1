"""Recipes: the arguments of one training stage in a YAML file, with the source beside each value."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class RecipeArguments:
    """Arguments that every training script takes besides its own and those of `TrainingArguments`."""

    recipe: str | None = field(
        default=None, metadata={"help": "name of a recipe in training/recipes, or the path of a YAML file"}
    )
    tiny: bool = field(
        default=False,
        metadata={"help": "tiny random model and generated data instead of those of the recipe, and 20 steps"},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "rows of one optimiser step over all processes; sets the gradient accumulation, and must be a "
            "multiple of per_device_train_batch_size times the number of processes"
        },
    )


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name_or_path: str, script: str | None = None) -> dict[str, Any]:
    """
    The arguments of a recipe.

    A recipe has `script` (the example that runs it, without `.py`), `description`, and `arguments`, a flat mapping of
    what the script takes on its command line.

    Args:
        name_or_path: a name of `recipe_names()`, or a path that ends in `.yaml` or `.yml`.
        script: the script that asks; a recipe for another one is an error.

    Raises:
        ValueError: no such recipe, another layout, or a recipe of another script.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ValueError(
            f"`recipe` {name_or_path!r} does not exist; accepted are {', '.join(recipe_names())}, or the path of a YAML file"
        )
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"`recipe` {str(path)!r} is no YAML: {error}") from error
    expected = {"script", "description", "arguments"}
    if not isinstance(recipe, Mapping) or set(recipe) != expected or not isinstance(recipe["arguments"], Mapping):
        raise ValueError(f"`recipe` {str(path)!r} must be a mapping with exactly {sorted(expected)}")
    if script is not None and recipe["script"] != script:
        raise ValueError(f"`recipe` {name_or_path!r} is for examples/{recipe['script']}.py, not for {script}.py")
    return dict(recipe["arguments"])


def parse_arguments(
    script: str,
    groups: Sequence[type],
    arguments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """
    The command line of a training script. What is given there wins over `tiny` (with `--tiny`), that over the recipe,
    that over `defaults`, and that over the defaults of the dataclasses. Epochs that are given win over steps that are
    not: a recipe with `num_train_epochs` alone, or `--num_train_epochs` without `--max_steps`, is not cut short.

    Args:
        script: name of the script, without `.py`.
        groups: dataclasses of its arguments, without [`RecipeArguments`]; `TrainingArguments` or a subclass among them.
        arguments: the command line; that of the process by default.
        defaults: defaults of the script.
        tiny: what `--tiny` sets.

    Returns:
        One object per group, then the [`RecipeArguments`].

    Raises:
        ValueError: a recipe with arguments that the script does not take, a `global_batch_size` that the processes
            cannot make, or several processes on a CPU without `--use_cpu`, which would not work together.
    """
    groups = (*groups, RecipeArguments)
    known = {entry.name for group in groups for entry in dataclasses.fields(group) if entry.init}
    chosen, _ = HfArgumentParser(RecipeArguments, add_help=False).parse_known_args(arguments)
    values = dict(defaults or {})
    if chosen.recipe is not None:
        recipe = read_recipe(chosen.recipe, script)
        if unknown := sorted(set(recipe) - known):
            raise ValueError(f"`recipe` {chosen.recipe!r} has arguments that {script}.py does not take: {unknown}")
        values.update({"max_steps": -1} if "num_train_epochs" in recipe else {})
        values.update(recipe)
    if chosen.tiny:
        values.update({"max_steps": 20, "global_batch_size": None, **(tiny or {})})
    given = {argument.partition("=")[0] for argument in (sys.argv[1:] if arguments is None else arguments)}
    if "--num_train_epochs" in given and "--max_steps" not in given:
        values["max_steps"] = -1
    parser = HfArgumentParser(groups)
    parser.set_defaults(**values)
    for action in parser._actions:
        if action.dest in values:  # a required argument that the recipe gives
            action.required = False
    parsed = parser.parse_args_into_dataclasses(arguments)
    recipe_arguments = parsed[len(groups) - 1]
    training = next((entry for entry in parsed if isinstance(entry, TrainingArguments)), None)
    processes = started_processes()
    if training is not None and processes > 1 and training.world_size == 1:
        raise ValueError(
            f"{processes} processes were started, but each would train alone: give --use_cpu for processes on the CPU"
        )
    if training is not None and recipe_arguments.global_batch_size is not None:
        training.gradient_accumulation_steps = accumulation_steps(
            recipe_arguments.global_batch_size, training.per_device_train_batch_size, training.world_size
        )
    return parsed


def fields_of(name: str, value: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Fields of a configuration, given as one argument of a script: JSON on the command line, a mapping in a recipe.

    Raises:
        ValueError: no JSON object; `name` is the argument.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` is no JSON ({error}): {value!r}") from error
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be an object with the fields of a configuration, got {value!r}")
    return dict(value or {})


def started_processes() -> int:
    """Processes that a launcher (accelerate, torchrun) says it started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def accumulation_steps(global_batch_size: int, per_device_batch_size: int, world_size: int) -> int:
    """Micro-batches of one optimiser step such that all processes together see `global_batch_size` rows.

    Raises:
        ValueError: no whole number of micro-batches does.
    """
    at_once = per_device_batch_size * world_size
    if global_batch_size < at_once or global_batch_size % at_once:
        raise ValueError(
            f"`global_batch_size` {global_batch_size} is no multiple of `per_device_train_batch_size` "
            f"{per_device_batch_size} times {world_size} processes"
        )
    return global_batch_size // at_once


__all__ = [
    "RecipeArguments",
    "accumulation_steps",
    "parse_arguments",
    "read_recipe",
    "recipe_names",
    "started_processes",
]
