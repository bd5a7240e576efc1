"""Foreign checkpoints are read completely or refused; converted ones are written completely or not at all."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dualspeech.modeling.conversion.checkpoint_io import (
    KeyRule,
    atomic_folder,
    convert_keys,
    load_foreign_state_dict,
    load_strictly,
    save_converted,
)


def tensors(*names):
    return {name: torch.full((2,), float(i)) for i, name in enumerate(names)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("entry", [None, "model"])
def test_reads_flat_and_nested_files(tmp_path, entry):
    state = tensors("a", "b.c")
    torch.save(state, tmp_path / "flat.pth")
    save_file(state, tmp_path / "flat.safetensors")
    assert same(load_foreign_state_dict(tmp_path / "flat.pth", entry), state)
    assert same(load_foreign_state_dict(tmp_path / "flat.safetensors", entry), state)
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pth")
    assert same(load_foreign_state_dict(tmp_path / "nested.pth", "model"), state)


def test_reads_folders(tmp_path):
    state = tensors("a", "b")
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    single.mkdir(), sharded.mkdir()
    torch.save(state, single / "adapter_model.bin")
    assert same(load_foreign_state_dict(single), state)
    save_file({"a": state["a"]}, sharded / "x-1.safetensors")
    save_file({"b": state["b"]}, sharded / "x-2.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}))
    assert same(load_foreign_state_dict(sharded), state)
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors"}, "metadata": {}}))
    assert same(load_foreign_state_dict(sharded), {"a": state["a"]})
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "c": "x-2.safetensors"}}))
    with pytest.raises(ValueError, match="disagree about b, c"):
        load_foreign_state_dict(sharded)


def test_refuses_what_it_cannot_read(tmp_path, capsys):
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        load_foreign_state_dict(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"has none of the files model\.safetensors"):
        load_foreign_state_dict(tmp_path)
    torch.save({"model": tensors("a"), "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="weights_only=True"):
        load_foreign_state_dict(tmp_path / "evil.pth", "model")
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load_foreign_state_dict(tmp_path / "list.pth")
    torch.save({"state_dict": tensors("a"), "epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"an entry 'model'.*state_dict, epoch"):
        load_foreign_state_dict(tmp_path / "other.pth", "model")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth"):
        load_foreign_state_dict(tmp_path / "text.pth")


def test_convert_keys_renames_transforms_and_splits():
    state = {
        "h.0.w": torch.arange(6.0).view(3, 2),
        "h.1.w": torch.ones(3, 2),
        "qkv": torch.arange(3),
        "junk": torch.ones(1),
    }
    rules = [
        KeyRule(r"h\.(\d+)\.w", r"layers.\1.weight", lambda t: t.T),
        ("qkv", ("q", "k", "v"), lambda t: t.chunk(3)),
    ]
    converted = convert_keys(state, rules, ignore=("ju.k",))
    assert list(converted) == ["layers.0.weight", "layers.1.weight", "q", "k", "v"]
    assert torch.equal(converted["layers.0.weight"], state["h.0.w"].T)
    assert converted["k"].item() == 1


def test_convert_keys_lists_everything_it_does_not_understand():
    with pytest.raises(ValueError, match=r"2 keys are not understood: b, a\.weight\.more\."):
        convert_keys(tensors("a.weight", "b", "a.weight.more"), [(r"a\.weight", "w")])
    with pytest.raises(ValueError, match="become 'w'"):
        convert_keys(tensors("a1", "a2"), [(r"a\d", "w")])


def test_load_strictly_reports_all_differences_at_once():
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=r"missing: bias; unexpected: gain; other shapes: weight \(2, 3\)"):
        load_strictly(model, {"weight": torch.ones(2, 3), "gain": torch.ones(1)})
    assert torch.equal(model.weight, before)
    load_strictly(model, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert model.weight.eq(1).all()


class Saver:
    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails

    def save_pretrained(self, folder):
        (folder / self.name).write_text("saved")
        if self.fails:
            raise RuntimeError("disk full")


def test_save_converted_is_all_or_nothing(tmp_path):
    target = tmp_path / "new" / "out"
    with pytest.raises(RuntimeError, match="disk full"):
        save_converted(Saver("model"), target, Saver("processor", fails=True))
    assert not target.exists() and not any(target.parent.iterdir())
    save_converted(Saver("model"), target, Saver("processor"))
    assert sorted(path.name for path in target.iterdir()) == ["model", "processor"]
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == target.parent.stat().st_mode & 0o777
    with pytest.raises(ValueError, match="exists already"):
        save_converted(Saver("model"), target)


def test_atomic_folder_accepts_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "out" / "file").read_text() == "x"
