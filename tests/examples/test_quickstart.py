"""The quickstart: every task, WAV files, a table."""

import soundfile

from tests.examples.running import load_example


def test_quickstart_runs_all_tasks(tmp_path, capsys):
    load_example("quickstart").main(["--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    for task in ("asr", "s2tt", "ser", "sqa", "tts", "t2st", "vc", "sc"):
        assert f"\n{task} " in printed
    for task in ("tts", "t2st", "vc", "sc"):
        audio, rate = soundfile.read(tmp_path / f"{task}.wav")
        assert rate == 24000 and len(audio) > 0


def test_quickstart_takes_files_and_a_checkpoint(tmp_path, capsys):
    quickstart = load_example("quickstart")
    quickstart.make_checkpoint(tmp_path / "checkpoint")
    soundfile.write(tmp_path / "me.wav", quickstart.tone_speech(["red", "tree"], rate=22050), 22050)
    recording = str(tmp_path / "me.wav")
    options = {"output_dir": tmp_path / "out", "checkpoint": tmp_path / "checkpoint", "text": "two blue"}
    options |= {"audio": recording, "voice": recording}
    quickstart.main([str(part) for name, value in options.items() for part in (f"--{name}", value)])
    assert (tmp_path / "out" / "vc.wav").exists()
