"""What the README says works: its Python blocks run, its table names every class, its commands exist."""

import re

import pytest

import dualspeech
from dualspeech import registry
from tests.hub_server import HubServer

from .running import ROOT, blocks, run_commands, run_python

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_python_block_runs(tmp_path):
    run_python(
        """
        from tiny_dualspeech import make_dualspeech_checkpoint, tone_speech
        from tiny_moss_speech import make_moss_checkpoint
        from dualspeech.processing.audio import save_audio
        make_dualspeech_checkpoint("outputs/quickstart/checkpoint")
        make_moss_checkpoint("outputs/chat/checkpoint")
        save_audio("speech.wav", tone_speech(["one", "red", "house"]), 24000)
        save_audio("question.wav", tone_speech(["one", "house"], rate=16000), 16000)
        save_audio("voice.wav", tone_speech(["tree", "two"], voice=3), 24000)
        """,
        cwd=tmp_path,
        path=[ROOT, ROOT / "examples"],
    )
    with HubServer() as hub:
        run_python(
            "\n".join(blocks(README, "python")), cwd=tmp_path, path=[ROOT], **hub.environment(tmp_path / "home")
        )
        assert "model.safetensors" in hub.repositories["user/name"].files()
    assert (tmp_path / "answer.wav").stat().st_size > 44


@pytest.mark.slow
def test_every_command_block_runs(tmp_path):
    """But for the installation (`test_install.py`) and the test suite itself."""
    for commands in blocks(README, "bash"):
        if "pytest" not in commands:
            run_commands(commands, tmp_path)


def test_commands():
    commands = "\n".join(blocks(README, "bash"))
    for path in re.findall(r"\b(?:examples|tests)/[\w/.]+", commands):
        assert (ROOT / path).exists(), path
    assert README.count("<!-- test command -->\n```bash\n") == 1
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@pytest.mark.parametrize("name", [name for name in dualspeech.__all__ if not name.endswith(("Config", "__version__"))])
def test_table_names_every_class_with_its_auto_classes(name):
    (row,) = [line for line in README.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
    for auto_class, classes in registry.CLASSES.items():
        if any(where[1] == name for where in classes.values()):
            assert f"`{auto_class}`" in row, (name, auto_class)


def test_files_that_are_mentioned_exist():
    for path in re.findall(r"`((?:benchmarks|examples|modeling|tests|training)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
