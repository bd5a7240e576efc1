"""Optional use of torchaudio, and protection of transformers from a copy of it that does not load.

transformers imports torchaudio wherever the package is merely present. A copy built for another torch then makes
`transformers` itself fail to import (OSError or RuntimeError, not only ImportError).
"""

import importlib.util
import sys
import warnings


def torchaudio_or_none():
    """The `torchaudio` module, or `None` where it is not installed or does not load beside the installed torch."""
    try:
        import torchaudio
    except (ImportError, OSError, RuntimeError):
        return None
    return torchaudio


def hide_broken_torchaudio() -> None:
    """Make transformers behave as if torchaudio were absent when the installed copy does not load."""
    if importlib.util.find_spec("torchaudio") is None or torchaudio_or_none() is not None:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    from transformers.utils import is_torchaudio_available

    sys.modules["torchaudio"] = None  # find_spec now answers None
    is_torchaudio_available.cache_clear()
    is_torchaudio_available()  # remembers False for this process
    del sys.modules["torchaudio"]
    warnings.warn(
        "torchaudio is installed but does not load beside this torch; it is hidden from transformers. "
        "Uninstall it, or install a matching pair with `pip install dualspeech[torchaudio]`.",
        stacklevel=3,
    )


__all__ = ["hide_broken_torchaudio", "torchaudio_or_none"]
