"""The whole pipeline, from the corpus to both checkpoints, with few steps on a small corpus."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from train import main, stages
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from tests.package.running import ROOT, blocks, run_commands
from tests.tiny import tone

from .corpora import make_takes

NANO = ROOT / "examples" / "nano" / "README.md"
NEEDED = "espeak-ng and flite make the corpus"


def test_stages_need_earlier_ones():
    """Each stage stands behind those it builds on; its script and its recipe exist."""
    seen = set()
    for stage in stages("folder"):
        assert set(stage.needs) <= seen and stage.name not in seen
        seen.add(stage.name)
        paths = [part for part in stage.command if part.endswith((".py", ".yaml"))]
        assert all(Path(path).is_file() for path in paths), paths
    assert {"dualspeech-nano", "moss-speech-nano"} <= seen


def test_unknown_and_early_stages_are_refused(tmp_path, capsys):
    for names, message in (("nothing", "unknown stages"), ("codec", "needs corpus")):
        with pytest.raises(SystemExit):
            main(["--folder", str(tmp_path), "--stages", names])
        assert message in capsys.readouterr().err


def test_list_runs_nothing(tmp_path, capsys):
    main(["--folder", str(tmp_path / "out"), "--list"])
    assert capsys.readouterr().out.count("    python ") == len(stages("folder"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The commands of the nano README, all stages with two steps each; and once more, when everything is skipped."""
    if not all(map(shutil.which, ("espeak-ng", "flite"))):
        pytest.skip(NEEDED)
    root = tmp_path_factory.mktemp("pipeline")
    digits = root / "path" / "to" / "recordings"
    digits.mkdir(parents=True)
    make_takes(digits)
    for i, path in enumerate(sorted(digits.iterdir())):
        soundfile.write(path, tone(0.4, 8000, frequency=150 + i), 8000)
    small = {"make_corpus.py": "make_corpus.py --scale 0.01", "train.py": "train.py --scale 0.01 --max_steps 2"}
    for commands in blocks(NANO.read_text(encoding="utf-8"), "bash"):
        for name, given in small.items():
            commands = commands.replace(name, given)
        run_commands(commands, root)
        logs = root / "outputs" / "nano" / "logs"
        stamps = {path: path.stat().st_mtime_ns for path in logs.glob("*")}
    main(["--folder", str(logs.parent), "--human_digits", str(digits), "--scale", "0.01", "--max_steps", "2"])
    assert len(stamps) > 50 and stamps == {path: path.stat().st_mtime_ns for path in logs.iterdir()}
    return logs.parent


@pytest.mark.slow
def test_checkpoints_load(folder):
    for name, auto_class in (("dualspeech", AutoModelForMultimodalLM), ("moss-speech", AutoModelForCausalLM)):
        checkpoint = folder / f"{name}-nano"
        processor = AutoProcessor.from_pretrained(checkpoint)
        assert processor.audio_tokenizer is not None
        auto_class.from_pretrained(checkpoint)
    sizes = [path.stat().st_size for path in folder.glob("*-nano/**/*") if path.is_file()]
    assert sum(sizes) < 60e6


@pytest.mark.slow
def test_quickstart_runs_on_them(folder, tmp_path):
    command = [sys.executable, ROOT / "examples" / "quickstart.py", "--output_dir", tmp_path, "--no_figure"]
    given = ["--dualspeech", folder / "dualspeech-nano", "--moss", folder / "moss-speech-nano"]
    done = subprocess.run([*command, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("->") >= 11
