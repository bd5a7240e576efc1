"""Training of the flow decoder: examples from recordings, batches, exact losses, the script."""

import copy
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, Trainer, TrainingArguments

from dualspeech.modeling.audio_features import resample, vocoder_log_mel
from dualspeech.training.flow_examples import FlowDecoderCollator, encode_recordings
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.seeded_evaluation import SeededEvaluationMixin
from tests.examples.running import load_example


class FlowTrainer(SeededEvaluationMixin, LossPartsMixin, Trainer):
    pass


@pytest.fixture(scope="module")
def codec():
    return load_example("tiny_moss_speech").tiny_moss_codec()


def recordings(rate=24000, lengths=(16000, 9000, 20011)):
    draw = np.random.default_rng(0)
    return [
        {"audio": {"array": (0.1 * draw.standard_normal(length)).astype(np.float32), "sampling_rate": rate}}
        for length in lengths
    ]


@pytest.fixture(scope="module")
def rows(codec):
    return list(encode_recordings(recordings(), codec.encoder, codec.speaker_encoder, batch_size=2))


@pytest.mark.parametrize("rate", [24000, 22050])
def test_examples_are_those_of_a_voice(codec, rate):
    """Codes, mel frames and speaker vectors are what `make_voice` takes from the same recording."""
    sources = recordings(rate)
    rows = list(encode_recordings(sources, codec.encoder, codec.speaker_encoder, resample=rate != 24000))
    batch = FlowDecoderCollator(codec.flow.config, resample=rate != 24000)(rows)
    for row, source in enumerate(sources):
        voice = codec.make_voice(torch.from_numpy(source["audio"]["array"]), rate)
        length = voice.num_codes
        assert batch["codes_mask"][row].tolist() == [i < length for i in range(batch["codes"].shape[1])]
        assert torch.equal(batch["codes"][row, :length], voice.prompt_codes)
        assert torch.allclose(batch["mel"][row, :, : 4 * length], voice.prompt_mel, atol=1e-5)
        assert not batch["mel"][row, :, 4 * length :].any()
        assert torch.allclose(batch["speaker_embeds"][row], voice.speaker_embeds, atol=1e-4)


def test_what_a_row_has_is_kept(codec, rows):
    given = {**recordings()[0], "codes": [1] * 9, "speaker_embeds": [0.5] * 24}
    assert next(encode_recordings([given])) == given
    batch = FlowDecoderCollator(codec.flow.config, speaker=False)([{**recordings()[0], "codes": [1] * 9}])
    assert "speaker_embeds" not in batch and batch["codes"].shape == (1, 8)
    samples = torch.from_numpy(given["audio"]["array"])
    mel = vocoder_log_mel(resample(samples, 24000, 24000), 16, 24000, 1920, 480, 8000.0)
    assert torch.allclose(batch["mel"][0], mel[:, :32], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": None}, "a.jsonl:3.*no `codes`"),
        ({"audio": None}, "a.jsonl:3.*(no `audio`|`audio` is missing)"),
        ({"speaker_embeds": None}, "no `speaker_embeds`"),
        ({"speaker_embeds": [0.0] * 3}, "must have 24 numbers, got 3"),
        ({"codes": [1, 2, 64]}, "`codes` hold 64 at position 2; accepted are 0 to 39"),
        ({"codes": [1, -1]}, "`codes` hold -1 at position 1"),
        ({"codes": "1 2 3"}, "`codes` are 1 2 3; accepted is a list of whole numbers"),
        ({"codes": ["1", "2"]}, "accepted is a list of whole numbers"),
        ({"codes": [[1], [1, 2]]}, "accepted is a list of whole numbers"),
        ({"codes": [1.5] * 8}, "accepted is a list of whole numbers"),
        ({"speaker_embeds": [float("nan")] * 24}, "NaN or infinite"),
        ({"speaker_embeds": ["a"] * 24}, "accepted is a list of numbers"),
        ({"codes": [1] * 15}, "15 for a recording of 0.67 s"),
        ({"audio": {"array": np.zeros(24001, np.float32), "sampling_rate": 24000}, "codes": [1] * 13}, "at most 1.0"),
        ({"audio": {"array": np.zeros(800, np.float32), "sampling_rate": 24000}, "codes": [1]}, "no whole code"),
        ({"audio": {"array": np.zeros(8000, np.float32), "sampling_rate": 16000}}, "16000 Hz"),
    ],
)
def test_bad_rows_are_refused(codec, rows, change, message):
    collator = FlowDecoderCollator(codec.flow.config, max_seconds=1.0)
    bad = {**rows[0], "source": "a.jsonl:3", **change}
    with pytest.raises(ValueError, match=message):
        collator([bad])
    collator.check(rows)
    with pytest.raises(ValueError, match=message) as caught:
        collator.check([*rows, bad])
    assert str(caught.value).startswith("`rows`: 1 of 4 rows cannot be trained on:\n  a.jsonl:3 (row 3): ")


def test_recordings_that_cannot_be_encoded_are_refused(codec):
    with pytest.raises(ValueError, match=r"row 1: .*no `encoder`"):
        list(encode_recordings([{**recordings()[0], "codes": [1]}, recordings()[1]]))
    with pytest.raises(ValueError, match=r"row 2: .*16000 Hz"):
        list(encode_recordings([*recordings()[:2], *recordings(rate=16000)], codec.encoder))


def trainer(folder, model, rows, **kwargs):
    arguments = {"max_steps": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "save_steps": 2, "seed": 1}
    arguments |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "logging_steps": 1}
    arguments |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False}
    return FlowTrainer(
        copy.deepcopy(model),
        TrainingArguments(folder, **{**arguments, **kwargs}),
        data_collator=FlowDecoderCollator(model.config),
        train_dataset=rows,
        eval_dataset=rows[:2],
    )


def test_loss_is_a_mean_over_frames(codec, rows):
    model = codec.flow
    collator = FlowDecoderCollator(model.config)
    batches = [collator([row]) for row in rows[:2]]
    counts = [model.loss_item_counts(**batch)["flow_loss"] for batch in batches]
    assert counts == [32, 16] and model.loss_item_counts(**collator(rows[:2]))["flow_loss"] == 48
    assert model.loss_item_counts(**batches[0], mel_mask=torch.arange(32)[None] < 30)["flow_loss"] == 30
    outputs = [model(**batch, num_items_in_batch={"flow_loss": sum(counts)}) for batch in batches]
    for output, count in zip(outputs, counts, strict=True):
        assert output.loss.item() == pytest.approx(output.flow_loss.item() * count.item() / 48, rel=1e-5)
    assert model(**batches[0], return_loss=False).loss is None


def test_resumed_training_is_the_same_and_evaluation_changes_nothing(tmp_path, codec, rows):
    whole = trainer(tmp_path, codec.flow, rows, eval_strategy="steps", eval_steps=1)
    whole.train()
    resumed = trainer(tmp_path / "again", codec.flow, rows)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    for (name, value), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert whole.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"] == resumed.evaluate()["eval_loss"]


TINY = ["--tiny", "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no"]


def test_script_learns_and_its_decoder_loads(tmp_path, capsys):
    script = load_example("train_flow_decoder")
    encoded = tmp_path / "encoded.parquet"
    arguments = [*TINY, "--output_dir", str(tmp_path / "flow"), "--streaming_probability", "0.5", "--chunk_size", "3"]
    metrics = script.main([*arguments, "--encoded_file", str(encoded), "--tiny_rows", "8"])
    assert metrics["eval_loss"] < 0.95 * metrics["before"]
    assert "estimator.mid" in capsys.readouterr().out
    flow = AutoModel.from_pretrained(tmp_path / "flow")
    assert flow.config.streaming_probability == 0.5 and flow.config.chunk_size == 3
    codec = AutoModel.from_pretrained(tmp_path / "flow" / "codec")
    assert torch.equal(codec.flow.estimator.out_proj.weight, flow.estimator.out_proj.weight)
    assert codec.decode(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 1, 3 * 1920)

    arguments = [*TINY, "--output_dir", str(tmp_path / "again"), "--codec", str(tmp_path / "flow" / "codec")]
    arguments += ["--freezing", "^estimator[.]", "--max_steps", "2", "--no_speaker", "--tiny_rows", "4"]
    script.main(arguments)
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again.encoder_proj.weight, flow.encoder_proj.weight)
    assert not torch.equal(again.estimator.out_proj.weight, flow.estimator.out_proj.weight)
    with pytest.raises(ValueError, match="variant"):
        script.main([*TINY, "--output_dir", str(tmp_path), "--variant", "other"])
    with pytest.raises(ValueError, match="train_data"):
        script.main(["--output_dir", str(tmp_path)])


def test_script_checks_all_rows_first(tmp_path, monkeypatch):
    script = load_example("train_flow_decoder")
    monkeypatch.setattr(script, "encode", None)
    soundfile.write(tmp_path / "a.wav", np.zeros(24000), 24000)
    lines = [{}, {"codes": [1, 99999]}, {"codes": ["x"]}, {"speaker_embeds": [1.0]}, {"audio": "none.wav"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"audio": "a.wav", **line}) + "\n" for line in lines))
    with pytest.raises(ValueError, match="4 of 5 rows cannot be trained on") as caught:
        script.main([*TINY, "--output_dir", str(tmp_path / "out"), "--train_data", str(path)])
    assert [f"rows.jsonl:{line}" in str(caught.value) for line in range(1, 6)] == [False, True, True, True, True]
