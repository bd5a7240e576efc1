"""Which checkpoint a run resumes from."""

import pytest

from dualspeech.training.checkpoints import is_complete, last_checkpoint, resume_from

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def write(folder, step, files=FILES):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in files:
        (path / name).write_text("{}" if name.endswith(".json") else "")
    return str(path)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nothing") is None
    early = write(tmp_path, 90)
    late = write(tmp_path, 100)
    for count in range(len(FILES)):  # the Trainer writes them in this order
        assert not is_complete(write(tmp_path, 200 + count, FILES[:count]))
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "old-checkpoint-999").mkdir()
    write(tmp_path / "old-checkpoint-999", 998)
    cut = write(tmp_path, 300)
    (tmp_path / "checkpoint-300" / "trainer_state.json").write_text('{"epoch": 1')
    assert not is_complete(cut) and not is_complete(write(tmp_path, 301, FILES[1:]))
    assert last_checkpoint(tmp_path) == late != early


def test_what_to_resume_from(tmp_path):
    for none in (None, "", "no", False):
        assert resume_from(none, tmp_path) is None
    assert resume_from("auto", tmp_path) is None
    checkpoint = write(tmp_path, 5)
    assert resume_from("auto", tmp_path) == resume_from(True, tmp_path) == resume_from(checkpoint, "x") == checkpoint
    broken = write(tmp_path, 6, FILES[:2])
    with pytest.raises(ValueError, match=r"is no complete checkpoint.*checkpoint-5"):
        resume_from(broken, tmp_path)
