"""The two names of a key-value cache: `cache` from transformers 5.24 on, `past_key_values` before."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

# What the installed transformers calls it, in its arguments and in its outputs.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
CACHE_NAMES = ("cache", "past_key_values")


def rename_cache(kwargs: dict, name: str = CACHE_NAME) -> dict:
    """
    `kwargs` with the cache under `name`, whichever of its names the caller used.

    Raises:
        ValueError: if both names are given.
    """
    given = {key: kwargs[key] for key in CACHE_NAMES if key in kwargs}
    if sum(value is not None for value in given.values()) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of one argument; accepted is one of them")
    if not given.keys() - {name}:
        return kwargs
    others = {key: value for key, value in kwargs.items() if key not in CACHE_NAMES}
    return {**others, name: next((value for value in given.values() if value is not None), None)}


def cache_arguments(cache) -> dict:
    """
    The keyword under which a module of the installed transformers takes `cache`. The paged cache of continuous batching
    was called `cache` before 5.24 too, where it is no `Cache` and meant for the attention function alone.
    """
    is_paged = cache is not None and not isinstance(cache, Cache)
    return {"cache" if is_paged else CACHE_NAME: cache}


def takes_cache(function: Callable) -> Callable:
    """
    Let callers of a `function` with an argument `cache` use either name. Its signature shows the one of the installed
    transformers, whose generation looks there for what a model takes.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **rename_cache(kwargs, "cache"))

    signature = inspect.signature(function)
    parameters = [
        parameter.replace(name=CACHE_NAME) if parameter.name == "cache" else parameter
        for parameter in signature.parameters.values()
    ]
    wrapped.__signature__ = signature.replace(parameters=parameters)
    return wrapped


def output_with_cache(kind: type) -> type:
    """
    Make a dataclass of a `ModelOutput` whose field `cache` has the name that the installed transformers reads. Both
    names can be read as attributes; it is built with `**{CACHE_NAME: ...}`.
    """
    if CACHE_NAME != "cache":
        kind.__annotations__ = {
            CACHE_NAME if name == "cache" else name: value for name, value in kind.__annotations__.items()
        }
        setattr(kind, CACHE_NAME, kind.cache)
        kind.cache = property(lambda output: getattr(output, CACHE_NAME))
    return dataclass(kind)


__all__ = ["CACHE_NAME", "CACHE_NAMES", "cache_arguments", "output_with_cache", "rename_cache", "takes_cache"]
