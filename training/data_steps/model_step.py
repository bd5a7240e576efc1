"""Steps that hold a model."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .step import Step


@dataclass
class ModelStep(Step):
    """
    A step with a model: where it runs is not part of what it makes, and a pickle holds the fields only.

    Args:
        batch_size (`int`, *optional*, defaults to 8): rows that go through the model at a time.
        device (`str`, *optional*): a torch device; a GPU where there is one.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; that of the checkpoint by default.
    """

    batch_size: int = field(default=8, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    dtype: str = field(default="auto", kw_only=True)

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        return {name: value for name, value in settings.items() if name not in ("batch_size", "device")}

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def default_device(device: str | None = None) -> str:
    """`device`, or the first GPU where there is one, or the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_model(auto_class: Any, checkpoint: str, device: str | None = None, dtype: str = "auto"):
    """`auto_class.from_pretrained(checkpoint)` in evaluation mode on `device`, see [`default_device`]."""
    return auto_class.from_pretrained(checkpoint, dtype=dtype).to(default_device(device)).eval()


def loaded(value: Any, step: Any) -> Any:
    """`value`, which `setup` of `step` sets.

    Raises:
        RuntimeError: it did not run in this process.
    """
    if value is None:
        raise RuntimeError(f"call `setup()` of {type(step).__name__} before `process`")
    return value


__all__ = ["ModelStep", "default_device", "load_model", "loaded"]
