"""The similarity script: tones on the tiny split model, samples from a file, plain models."""

import json

import pytest
from matplotlib.image import imread
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.examples.running import load_example

# Random states are hardly similar at all.
pytestmark = pytest.mark.filterwarnings("ignore:BG [+] lambda is negative:UserWarning")


@pytest.fixture(scope="module")
def script():
    return load_example("layer_similarity")


@pytest.fixture(scope="module")
def tones(script, tmp_path_factory):
    """The folder of a run without arguments, and what it returned."""
    folder = tmp_path_factory.mktemp("similarity")
    return folder, script.main(["--output_dir", str(folder), "--embeddings", "--device", "cpu"])


def run(script, folder, samples, *more):
    folder.mkdir(exist_ok=True)
    (folder / "samples.json").write_text(json.dumps(samples))
    arguments = ["--samples", str(folder / "samples.json"), "--output_dir", str(folder), "--device", "cpu", *more]
    return script.main([str(argument) for argument in arguments])


def test_tones_on_the_tiny_model(tones):
    folder, summary = tones
    assert summary["layers"] == ["embeddings", "layer 0", "layer 1", "layer 2"]
    assert summary["branches"] == {"text": "text", "speech": "audio"} and summary["num_trunk_layers"] == 2
    assert json.loads((folder / "similarity.json").read_text()) == summary
    assert [len(sample["spans"]) for sample in summary["samples"]] == [3, 3, 2]
    scores = [sample["scores"] for sample in summary["samples"]]
    assert summary["average"] == pytest.approx([sum(column) / 3 for column in zip(*scores, strict=True)])
    for name in ("heat_maps_0.png", "heat_maps_1.png", "heat_maps_2.png", "scores.png"):
        assert imread(folder / name).std() > 0.01


def test_samples_of_a_file(script, tones, tmp_path, capsys):
    checkpoint = tones[0] / "checkpoint"
    samples = [
        {"text": "one red", "speech": [3, 9, 27, 4, 4, 11]},
        {"text": [5, 6, 7, 8], "speech": [1, 2, 3], "spans": [{"text": [1, 3], "speech": [0, 2]}]},
    ]
    summary = run(script, tmp_path, samples, "--checkpoint", checkpoint, "--num_spans", 3)
    assert summary["layers"] == ["layer 0", "layer 1", "layer 2"]
    assert [len(sample["spans"]) for sample in summary["samples"]] == [3, 1]
    assert summary["samples"][1]["spans"] == samples[1]["spans"]
    assert len(capsys.readouterr().out.splitlines()) == 4
    one_branch = run(
        script, tmp_path, samples, "--checkpoint", checkpoint, "--num_spans", 3, "--speech_branch", "text"
    )
    for sample, other in zip(summary["samples"], one_branch["samples"], strict=True):
        assert sample["dtw"][:2] == other["dtw"][:2] and sample["dtw"][2] != other["dtw"][2]
    assert one_branch["branches"] == {"text": "text", "speech": "text"}


def test_plain_model(script, tmp_path):
    config = Qwen3Config(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    samples = [{"text": [5, 6, 7, 8], "speech": [1, 2, 3, 29]}]
    arguments = ["--checkpoint", tmp_path / "model", "--speech_offset", 60]
    summary = run(script, tmp_path, samples, *arguments)
    assert summary["layers"] == ["layer 0", "layer 1"] and summary["branches"] is None
    with pytest.raises(ValueError, match=r"--speech_offset.*got None for Qwen3ForCausalLM"):
        run(script, tmp_path, samples, *arguments[:2])
    with pytest.raises(ValueError, match=r"sample 0: .*list of codes"):
        run(script, tmp_path, [{"text": [5, 6], "speech": "speech.wav"}], *arguments)


def test_wrong_samples(script, tones, tmp_path):
    checkpoint = ["--checkpoint", tones[0] / "checkpoint"]
    good = {"text": "one red", "speech": [3, 9, 27]}
    for samples, message in (
        ([], "not empty"),
        ({"text": "one"}, "list of samples"),
        ([good, {"text": "one"}], "sample 1 must have"),
        ([good, good | {"span": []}], "sample 1 must have"),
        ([good | {"spans": [{"text": [0, 9], "speech": [0, 1]}]}], r"sample 0: .*\[0, 9\]"),
        ([good | {"speech": "missing.wav"}], r"sample 0: .*missing.wav"),
        ([good | {"speech": [3, 4000]}], "sample 0: .*audio ids"),
    ):
        with pytest.raises(ValueError, match=message):
            run(script, tmp_path, samples, *checkpoint)
    with pytest.raises(ValueError, match=r"--speech_offset.*got 3 for SplitLayerQwen3ForCausalLM"):
        run(script, tmp_path, [good], *checkpoint, "--speech_offset", 3)
