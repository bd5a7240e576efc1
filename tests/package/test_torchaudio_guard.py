"""A torchaudio that does not load must not take transformers with it."""

import pytest

from .running import ROOT, run_python

USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {first}
    import dualspeech
from transformers.utils import is_torchaudio_available
import transformers.audio_utils  # imports torchaudio where it is available
import dualspeech.torchaudio_guard as guard
said = [str(warning.message) for warning in caught if "torchaudio" in str(warning.message)]
print(is_torchaudio_available(), guard.torchaudio_or_none() is None, *said)
"""


def fake_torchaudio(folder, body):
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(body)
    # transformers asks the metadata for the version of what it finds
    info = folder / "torchaudio-2.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 2.11.0\n")
    return folder


@pytest.mark.parametrize(
    ("error", "first"),
    [
        ("OSError", "pass"),
        ("RuntimeError", "import transformers"),
        ("ImportError", "from transformers import AutoConfig"),
    ],
)
def test_broken_torchaudio_is_hidden(tmp_path, error, first):
    path = fake_torchaudio(tmp_path, f"import sys\nraise {error}('libcudart.so.13: cannot open shared object file')")
    out = run_python(USE.format(first=first), path=[path])
    assert out.startswith("False True torchaudio is installed but does not load"), out
    assert "pip install" in out


def test_working_torchaudio_is_left_alone(tmp_path):
    out = run_python(USE.format(first="pass"), path=[fake_torchaudio(tmp_path, "__version__ = '2.11.0'")])
    assert out == "True False"


def test_absent_torchaudio(tmp_path):
    # `None` in sys.modules is how Python marks a module that cannot be imported
    code = "import sys; sys.modules['torchaudio'] = None\n" + USE.format(first="pass")
    assert run_python(code, cwd=tmp_path, path=[ROOT]) == "False True"
