"""Violations of the schema of rows as messages that people can act on."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_KINDS = {
    "string": "a text",
    "object": "an object {...}",
    "array": "a list",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
_SHOWN = 60  # characters of a wrong value


def messages_of(error: Any) -> Iterator[tuple[str, str]]:
    """The places and messages of a `jsonschema.ValidationError`: which key, what was given, what is accepted."""
    place, schema = place_of(error.absolute_path), error.schema
    value, given = error.instance, error.validator_value
    accepted = schema.get("title")
    if error.validator == "type":
        kinds = [given] if isinstance(given, str) else given
        yield place, f"is {shown(value)}; accepted is {accepted or ' or '.join(_KINDS[kind] for kind in kinds)}"
    elif error.validator == "required":
        missing = " and ".join(f"`{name}`" for name in given if name not in value)
        yield place, f"lacks {missing}; {_keys(schema)}"
    elif error.validator == "additionalProperties":
        known = list(schema["properties"])
        for name in sorted(set(value) - set(known)):
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            yield place, f"has the unknown key `{name}`{hint}; {_keys(schema)}"
    elif error.validator == "dependentRequired":
        names = ", ".join(f"`{key}` needs `{other}`" for key, others in given.items() for other in others)
        yield place, f"{names} beside it"
    elif error.validator in ("anyOf", "oneOf"):
        names = [branch["required"][0] for branch in given]
        present = [f"`{name}`" for name in names if name in value]
        count = "exactly one" if error.validator == "oneOf" else "at least one"
        yield (
            place,
            f"has {' and '.join(present) or 'none'} of {', '.join(f'`{name}`' for name in names)}; {count} is needed",
        )
    elif error.validator in ("enum", "const"):
        values = given if error.validator == "enum" else [given]
        yield place, f"is {shown(value)}; accepted are {', '.join(map(repr, values))}"
    elif error.validator in ("minLength", "minItems"):
        yield place, f"is empty; accepted is {accepted or 'one that is not'}"
    elif error.validator == "maxItems":
        yield place, f"has {len(value)} entries; accepted is {accepted or f'at most {given}'}"
    elif error.validator in _BOUNDS:
        yield place, f"is {shown(value)}; accepted is {_BOUNDS[error.validator]} {given}"
    elif error.validator == "pattern" and not value.strip():
        yield place, f"is {'white space' if value else 'empty'}; accepted is {accepted or 'a text that is not empty'}"
    else:
        yield place, f"is {shown(value)}; accepted is {accepted or f'{error.validator} {given}'}"


def place_of(path: Any) -> str:
    """`targets.audio`, `messages[2].content`: the way to a value; empty for the row itself."""
    place = ""
    for step in path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    return place


def shown(value: Any) -> str:
    """A value, cut to a readable length, with its kind where that is not plain."""
    if isinstance(value, Mapping):
        text = f"an object with {', '.join(f'`{key}`' for key in value) or 'no keys'}"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({type(value).__name__})"


def _keys(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    names = [f"`{name}`" + (" (needed)" if name in required else "") for name in schema["properties"]]
    return f"accepted are {', '.join(names)}"


__all__ = ["messages_of", "place_of", "shown"]
