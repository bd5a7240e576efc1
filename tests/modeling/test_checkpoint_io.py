"""Foreign checkpoints are read completely or refused; converted ones are written completely or not at all."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dualspeech.modeling.conversion.checkpoint_io import (
    KeyRule,
    atomic_folder,
    check_dimensions,
    check_weights,
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
    torch.save({0: torch.ones(1), "a": torch.ones(1)}, tmp_path / "integers.pth")
    with pytest.raises(ValueError, match=r"the keys of '.*integers\.pth' must be names, got 0\."):
        load_foreign_state_dict(tmp_path / "integers.pth")


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_refuses_damaged_files(tmp_path, name):
    whole = tmp_path / "whole"
    (save_file if name.endswith("safetensors") else torch.save)(tensors("a", "b"), whole)
    whole = whole.read_bytes()
    texts = b"", b"not a checkpoint", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for content in (*texts, whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"checkpoint: '.*{name}' cannot be read"):
            load_foreign_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "has no `weight_map`"),
        ("{}", "has no `weight_map`"),
        ('{"weight_map": ["a"]}', "has no `weight_map`"),
        ('{"weight_map": {"a": 1}}', "has no `weight_map` from keys to file names"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors' is neither a file nor a folder"),
    ],
)
def test_refuses_a_broken_index(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_foreign_state_dict(tmp_path)


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


@pytest.mark.parametrize("tensor", [torch.tensor(1.0), torch.ones(2)])
def test_convert_keys_names_a_tensor_that_cannot_be_transformed(tensor):
    with pytest.raises(ValueError, match=r"'qkv' cannot have the shape \("):
        convert_keys({"qkv": tensor}, [("qkv", ("q", "k", "v"), lambda t: t.chunk(3))])


def test_sizes_are_read_from_tensors_that_have_them():
    state = {"a": torch.ones(2, 3), "b": torch.tensor(1.0), "c": torch.ones(1)}
    check_dimensions(state, {"a": 2, "c": 1}, "Thing")
    with pytest.raises(ValueError, match="not a Thing checkpoint, it lacks d, e"):
        check_dimensions(state, {"a": 2, "d": 1, "e": 1}, "Thing")
    with pytest.raises(ValueError, match=r"of another number of dimensions are a \(2, 3\), b \(\)"):
        check_dimensions(state, {"a": 3, "b": 1, "c": 1}, "Thing")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.ones(3, 2, dtype=torch.int8), r"weight \(torch.int8\)"),
        (torch.ones(3, 2, dtype=torch.complex64), r"weight \(torch.complex64\)"),
        (torch.ones(3, 2).to(torch.float8_e4m3fn), r"weight \(torch.float8_e4m3fn\)"),
        (torch.full((3, 2), torch.nan), r"weight \(NaN or infinite\)"),
        (torch.full((3, 2), torch.inf).bfloat16(), r"weight \(NaN or infinite\)"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(value, shown):
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=shown):
        load_strictly(model, {"weight": value, "bias": torch.zeros(3)})
    assert torch.equal(model.weight, before)
    check_weights({"weight": torch.zeros(3).half(), "bias": torch.zeros(3).double()})


def test_buffers_may_be_integers():
    model = nn.BatchNorm1d(2)
    load_strictly(model, {**model.state_dict(), "num_batches_tracked": torch.tensor(7)})
    assert model.num_batches_tracked == 7


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
    assert not any(tmp_path.iterdir())
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


@pytest.mark.parametrize("way", ["folder", "working folder", "link", "dangling link"])
def test_a_folder_that_is_there_stays_the_same_one(tmp_path, monkeypatch, way):
    real, output = tmp_path / "real", tmp_path / "real"
    if way != "dangling link":
        real.mkdir()
    if "link" in way:
        output = tmp_path / "link"
        output.symlink_to(real)
    if way == "working folder":
        monkeypatch.chdir(real)
        output = "."
    inode = real.stat().st_ino if real.exists() else None
    with pytest.raises(RuntimeError, match="disk full"):
        save_converted(Saver("model", fails=True), output)
    assert not real.exists() or not any(real.iterdir())
    save_converted(Saver("model"), output)
    assert os.listdir(output) == os.listdir(real) == ["model"]
    assert inode in (None, real.stat().st_ino) and (tmp_path / "link").is_symlink() == ("link" in way)


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("x")
    for output, message in (("file", "exists already"), ("file/sub", "file' is no writable folder")):
        with pytest.raises(ValueError, match=message), atomic_folder(tmp_path / output):
            raise AssertionError("the block was entered")
    assert os.listdir(tmp_path) == ["file"]
