"""Training of CAM++: the margin, batch norms, crops, equal error rate, exact resumption, the saved encoder, the script."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoFeatureExtractor, AutoModel, TrainingArguments

from dualspeech import CamPPlusConfig, CamPPlusModel, KaldiFbankFeatureExtractor
from dualspeech.training.configuration_speaker_training import SpeakerTrainingConfig
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.speaker_segments import (
    SpeakerSegments,
    check_speaker_rows,
    collate_speakers,
    speaker_names,
)
from dualspeech.training.speaker_trainer import SpeakerTrainer, equal_error_rate
from dualspeech.training.speaker_training import SpeakerEncoderForTraining, additive_angular_margin
from tests.examples.running import load_example

ENCODER = {"num_mel_bins": 20, "embedding_size": 12, "growth_rate": 4, "bottleneck_multiplier": 2, "init_channels": 8}
ENCODER |= {"head_channels": 4, "block_layers": [2, 2], "block_dilations": [1, 2], "segment_length": 20}
SPEAKERS = ["high", "low"]


def training_model(**kwargs):
    torch.manual_seed(0)
    return SpeakerEncoderForTraining(
        SpeakerTrainingConfig(encoder_config=ENCODER, **{"speakers": SPEAKERS, "batch_norm_momentum": 0.4, **kwargs})
    )


def voice(speaker, seconds, seed=0):
    """Tones with pauses, in the upper or in the lower half of the spectrum."""
    draw, rate = np.random.default_rng(seed), 16000
    time = np.arange(round(seconds * rate)) / rate
    low, high = {"low": (200, 700), "high": (2500, 5000), "middle": (900, 1500)}[speaker]
    return (0.2 * np.sin(2 * np.pi * draw.uniform(low, high) * time) * (time % 0.2 < 0.12)).astype(np.float32)


def recordings(count=8, speakers=SPEAKERS, seconds=0.6, seed=0):
    rows = []
    for i in range(count):
        speaker = speakers[i % len(speakers)]
        audio = voice(speaker, seconds + 0.07 * (i % 3), [seed, i])
        rows.append({"audio": {"array": audio, "sampling_rate": 16000}, "speaker": speaker})
    return rows


def crops(rows=None, **kwargs):
    rows = recordings() if rows is None else rows
    return SpeakerSegments(rows, CamPPlusConfig(**ENCODER), SPEAKERS, **{"num_samples": 6400, "seed": 3, **kwargs})


def batch_of(data, count=4):
    return collate_speakers([data[i] for i in range(count)])


def test_margin_moves_the_angle():
    torch.manual_seed(1)
    cosines, labels = torch.rand(40, 5) * 1.9 - 0.95, torch.randint(5, (40,))
    cosines[0, labels[0]] = -0.999  # an angle that the margin brings beyond pi
    moved = additive_angular_margin(cosines, labels, 0.3)
    own = F.one_hot(labels, 5).bool()
    assert torch.equal(moved[~own], cosines[~own])
    angles = cosines[own].acos() + 0.3
    expected = torch.where(angles < math.pi, angles.cos(), cosines[own] - 1 + math.cos(0.3))
    assert angles[0] > math.pi and torch.allclose(moved[own], expected, atol=1e-6)
    line = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    values = additive_angular_margin(line, torch.zeros(2001, dtype=torch.long), 0.3)[:, 0]
    assert (values.diff() > 0).all() and values.diff().max() < 0.03  # rising, without a jump
    edges = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    additive_angular_margin(edges, torch.zeros(2, dtype=torch.long), 0.3).sum().backward()
    assert edges.grad.isfinite().all()
    assert torch.equal(additive_angular_margin(cosines, labels, 0.0), cosines)


def test_loss_written_out_and_margin_grows():
    model, batch = training_model(margin_start_batches=2, margin_full_batches=4), batch_of(crops())
    assert torch.allclose(batch["labels"], torch.tensor([0, 1, 0, 1]))
    margins = []
    for _ in range(7):
        output = model.train()(**batch)
        margins.append(output.margin.item())
        cosines = output.logits / 32
        scaled = 32 * additive_angular_margin(cosines, batch["labels"], output.margin)
        assert output.loss.item() == pytest.approx(F.cross_entropy(scaled, batch["labels"]).item(), rel=1e-5)
    assert margins == pytest.approx([0, 0, 0.2 / 3, 0.4 / 3, 0.2, 0.2, 0.2])
    expected = F.normalize(output.embeddings, dim=-1) @ F.normalize(model.directions, dim=-1).T
    assert torch.allclose(cosines, expected, atol=1e-6)
    assert output.accuracy == (cosines.argmax(-1) == batch["labels"]).float().mean()
    summed = model(**batch, num_items_in_batch={"classification_loss": torch.tensor(8)})
    assert summed.loss.item() == pytest.approx(summed.classification_loss.item() / 2)
    assert training_model().train()(**batch).margin.item() == pytest.approx(0.2)


def test_only_training_mode_changes_the_model():
    model, batch = training_model().eval(), batch_of(crops())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(**batch)
    assert output.margin is None
    assert output.loss.item() == pytest.approx(F.cross_entropy(output.logits, batch["labels"]).item(), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(**batch).loss.backward()
    assert model.num_batches == 1
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    norm = model.speaker_encoder.xvector.tdnn.nonlinear.batchnorm
    assert norm.momentum == 0.4 and not torch.equal(
        norm.running_var, before["speaker_encoder.xvector.tdnn.nonlinear.batchnorm.running_var"]
    )


def test_unknown_speakers_are_left_out_of_the_loss():
    model, batch = training_model().eval(), batch_of(crops())
    known = {name: value[:2] for name, value in batch.items()}
    mixed = {**batch, "labels": torch.tensor([0, 1, 2, 3])}
    assert model(**mixed).loss.item() == pytest.approx(model(**known).loss.item(), rel=1e-5)
    assert model(**mixed).accuracy == model(**known).accuracy
    assert model.loss_item_counts(**mixed) == {"classification_loss": 2, "accuracy": 2}
    nobody = model(**{**batch, "labels": torch.tensor([2, 3, 2, 3])})
    assert nobody.loss == 0 and nobody.accuracy == 0
    with pytest.raises(ValueError, match="labels must be from 0 to 1"):
        model.train()(**mixed)


def test_bad_batches_are_refused():
    model, batch = training_model().train(), batch_of(crops())
    with pytest.raises(ValueError, match="2 rows at least, got 1"):
        model(**{name: value[:1] for name, value in batch.items()})
    padded = batch["attention_mask"].clone()
    padded[0, -1] = 0
    with pytest.raises(ValueError, match="without padding"):
        model(**{**batch, "attention_mask": padded})
    with pytest.raises(ValueError, match=r"labels must be \[4\]"):
        model(**{**batch, "labels": batch["labels"][:3]})
    wrong = [{"speakers": ["a"]}, {"speakers": ["a", "a"]}, {"scale": 0.0}, {"margin": 2.0}]
    wrong += [{"margin_full_batches": -1}, {"margin_start_batches": 2}, {"batch_norm_momentum": 0.0}]
    for change in wrong:
        with pytest.raises(StrictDataclassError):
            SpeakerTrainingConfig(**change)


@torch.no_grad()
def test_padded_batch_equals_single_recordings():
    data, model = crops(num_samples=None), training_model().train()
    model(**batch_of(crops()))
    model.eval()
    batch = batch_of(data)
    assert not batch["attention_mask"].all()
    together = model(**batch).embeddings
    for i in range(4):
        assert torch.allclose(together[i], model(**collate_speakers([data[i]])).embeddings[0], atol=1e-5)
    audio = [row["audio"]["array"] for row in recordings()[:4]]
    features = KaldiFbankFeatureExtractor(20)(audio, sampling_rate=16000, return_tensors="pt")
    assert torch.allclose(features["input_features"], batch["input_features"], atol=1e-5)
    assert torch.equal(features["attention_mask"].long(), batch["attention_mask"])


def test_crops_are_drawn_per_epoch_and_row():
    data = crops()
    first = [data[i]["input_features"] for i in range(8)]
    assert all(feature.shape == (38, 20) for feature in first)
    assert all(torch.equal(data[i]["input_features"], first[i]) for i in (5, 0, 3))
    data.set_epoch(1)
    assert not any(torch.equal(data[i]["input_features"], first[i]) for i in range(8))
    assert torch.equal(crops()[2]["input_features"], first[2])
    assert not torch.equal(crops(seed=4)[2]["input_features"], first[2])
    with pytest.raises(ValueError, match="got none"):
        crops([])


def test_augmentation_written_out():
    draw, ramp = np.random.default_rng, np.arange(1, 9001, dtype=np.float32) / 9000
    quiet = crops(noise_probability=0.0)
    crop = quiet._augmented(ramp, draw(0))
    assert np.allclose(crop / crop[-1], ramp) and 10 ** (-20 / 20) <= crop[-1] <= 10 ** (-1 / 20)
    for noise_rows in (None, [{"audio": {"array": -ramp[:700], "sampling_rate": 16000}}]):
        noisy = crops(noise_probability=1.0, snr=(7.0, 7.0), noise_rows=noise_rows)
        crop = noisy._augmented(ramp, draw(0))
        assert np.abs(crop).max() <= 10 ** (-1 / 20) + 1e-6
        noise = crop - ramp * (crop @ ramp) / (ramp @ ramp)
        if noise_rows is None:  # uncorrelated with the crop, up to chance
            ratio = 10 * np.log10(((crop - noise) ** 2).mean() / (noise**2).mean())
            assert ratio == pytest.approx(7.0, abs=1.5)
        assert not np.allclose(noise, 0, atol=1e-3)
    assert not noisy._augmented(np.zeros(900, np.float32), draw(0)).any()
    repeated = crops(recordings(2), noise_probability=0.0, num_samples=16000)
    assert repeated[0]["input_features"].shape == (98, 20)


def test_bad_rows_are_refused(tmp_path):
    rows = recordings(4)
    check_speaker_rows(rows, pairs=True)
    soundfile.write(tmp_path / "ann.wav", voice("low", 1.0), 16000)
    wrong = [
        {**rows[0], "speaker": None},
        {"audio": rows[0]["audio"]},
        {**rows[0], "speaker": str(tmp_path / "ann.wav")},
    ]
    wrong += [
        {**rows[0], "speaker": [0.5]},
        {**rows[0], "audio": {"array": voice("low", 0.2), "sampling_rate": 16000}},
    ]
    wrong += [{"speaker": "low"}, {**rows[0], "audio": {"array": voice("low", 1.0), "sampling_rate": 8000}}]
    for row in wrong:
        with pytest.raises(ValueError, match="1 of 5 rows"):
            check_speaker_rows([*rows, row])
    with pytest.raises(ValueError, match="two speakers at least"):
        check_speaker_rows(rows[::2])
    with pytest.raises(ValueError, match="pairs of one speaker"):
        check_speaker_rows(rows[:2], pairs=True)
    with pytest.raises(ValueError, match=r"row 0: `audio` has 0.600 s"):
        crops(min_seconds=0.9)[0]
    for change in ({"num_samples": 100}, {"min_seconds": 0.01}, {"noise_probability": 2.0}, {"snr": (3.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(change))):
            crops(**change)
    with pytest.raises(ValueError, match=r"\['middle'\] are missing"):
        crops(recordings(3, ["low", "middle"]))
    assert speaker_names(recordings(6, ["low", "middle", "high"]), ["z", "low"]) == ["z", "low", "high", "middle"]


def test_equal_error_rate():
    apart = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert equal_error_rate(apart, [0, 0, 1, 1]) == 0.0
    assert equal_error_rate(apart, [0, 1, 0, 1]) == 0.5
    assert equal_error_rate([[1, 0], [-1, 0], [0, 1], [0, -1]], [0, 0, 1, 1]) == 1.0
    assert equal_error_rate(np.ones((6, 3)), [0, 0, 0, 1, 1, 1]) == 0.5
    draw = np.random.default_rng(0)
    labels = draw.integers(4, size=80)
    vectors = draw.standard_normal((80, 5)) + 1.5 * draw.standard_normal((4, 5))[labels]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(unit[i] @ unit[j], labels[i] == labels[j]) for i in range(80) for j in range(i)]
    same, other = (np.array([score for score, is_same in pairs if is_same == wanted]) for wanted in (True, False))
    rates = [((same < threshold).mean(), (other >= threshold).mean()) for threshold, _ in pairs]
    nearest = min(rates, key=lambda pair: abs(pair[0] - pair[1]))
    found = equal_error_rate(vectors, labels)
    assert 0.05 < found < 0.4 and found == pytest.approx(sum(nearest) / 2, abs=2e-3)
    with pytest.raises(ValueError, match="got 0 and 6"):
        equal_error_rate(np.ones((4, 2)), [0, 1, 2, 3])


def trainer(folder, max_steps=6, rows=16, eval_speakers=(*SPEAKERS, "middle"), **kwargs):
    arguments = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "seed": 3}
    arguments |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_drop_last": True, **kwargs}
    held_out = recordings(9, eval_speakers, seed=1)
    data = SpeakerSegments(held_out, CamPPlusConfig(**ENCODER), speaker_names(held_out, SPEAKERS))
    return SpeakerTrainer(
        training_model(margin_full_batches=6),
        TrainingArguments(folder, max_steps=max_steps, **arguments),
        train_dataset=crops(recordings(rows)),
        eval_dataset=data,
    )


def test_learns_two_voices(tmp_path):
    learner = trainer(tmp_path, max_steps=30, save_strategy="no", per_device_train_batch_size=8)
    before, _ = learner.evaluate(), learner.train()
    after = learner.evaluate()
    assert after["eval_accuracy"] == 1.0 and after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_equal_error_rate"] < 0.25
    (entry,) = [entry for entry in learner.state.log_history if entry["step"] == 30 and "margin" in entry]
    assert entry["margin"] == pytest.approx(0.2) and 0 <= entry["accuracy"] <= 1


def test_unseen_speakers_have_an_equal_error_rate_only(tmp_path):
    learner = trainer(tmp_path)
    rows = recordings(6, ["low", "high"])
    rows = [{**row, "speaker": f"new {row['speaker']}"} for row in rows]
    data = SpeakerSegments(rows, CamPPlusConfig(**ENCODER), speaker_names(rows, SPEAKERS))
    metrics = learner.evaluate(data)
    assert "eval_equal_error_rate" in metrics and not {"eval_loss", "eval_accuracy"} & set(metrics)
    assert {"eval_loss", "eval_accuracy"} <= set(learner.evaluate())
    mean = learner.evaluate()["eval_loss"]
    learner.args.per_device_eval_batch_size = 2
    assert learner.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-5)  # however the rows are spread


def test_batches_of_one_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batches of 1 of the 9 rows"):
        trainer(tmp_path, rows=9, dataloader_drop_last=False)
    with pytest.raises(ValueError, match="batches of 1 of the 9 rows"):
        trainer(tmp_path, rows=9, per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="batches of 0 of the 3 rows"):
        trainer(tmp_path, rows=3)
    trainer(tmp_path, rows=9)


@pytest.mark.parametrize("save_steps", [2, 4])  # within the first epoch of 4 steps, and at its end
def test_resumed_training_is_the_same(tmp_path, save_steps):
    whole = trainer(tmp_path, save_steps=save_steps)
    whole.train()
    resumed = trainer(tmp_path / "again", save_steps=save_steps)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()  # everything comes from the checkpoint
    resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{save_steps}")
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    logs = [{entry["step"]: entry.get("margin") for entry in t.state.log_history} for t in (whole, resumed)]
    assert logs[0] == {**logs[0], **logs[1]} and state["num_batches"] == 6


@torch.no_grad()
def test_saved_encoder_gives_the_same_vectors(tmp_path):
    model = training_model().train()
    model(**batch_of(crops()))
    model.eval().save_pretrained(tmp_path)
    batch = batch_of(crops(num_samples=None))
    expected = model(**batch)
    encoder, info = AutoModel.from_pretrained(tmp_path / "speaker_encoder", output_loading_info=True)
    assert isinstance(encoder, CamPPlusModel) and not info["missing_keys"] and not info["unexpected_keys"]
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "speaker_encoder")
    audio = [row["audio"]["array"] for row in recordings()[:4]]
    vectors = encoder(**extractor(audio, sampling_rate=16000, return_tensors="pt")).embeddings
    assert torch.allclose(vectors, expected.embeddings, atol=1e-5)
    reloaded = SpeakerEncoderForTraining.from_pretrained(tmp_path)
    assert list(reloaded.config.speakers) == SPEAKERS
    assert torch.allclose(reloaded(**batch).logits, expected.logits, atol=1e-5)
    again = SpeakerEncoderForTraining.from_encoder(encoder, speakers=["a", "b", "c"]).eval()
    assert again.speaker_encoder is encoder and again(**batch).logits.shape == (4, 3)
    assert torch.allclose(again(**batch).embeddings, expected.embeddings, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("campplus", 7.18), ("campplus_small", 0.306)])
def test_recipes(name, size):
    module = load_example("train_speaker_encoder")
    groups = (module.EncoderArguments, module.LossArguments, module.DataArguments, TrainingArguments)
    arguments = ["--recipe", name, "--output_dir", "out", "--use_cpu", "true"]
    encoder, losses, data, training, _ = parse_arguments("train_speaker_encoder", groups, arguments)
    with torch.device("meta"):
        model = module.load(encoder, losses, SPEAKERS)
    parameters = sum(parameter.numel() for parameter in model.speaker_encoder.parameters())
    assert parameters / 1e6 == pytest.approx(size, rel=2e-3)
    assert (model.config.scale, model.config.margin) == (32.0, 0.2)
    assert data.crop_seconds == {"campplus": 3.0, "campplus_small": 1.5}[name]
    assert training.dataloader_drop_last


TINY = ["--tiny", "--disable_tqdm", "true", "--use_cpu", "true"]


def write_rows(folder, name, rows):
    folder.mkdir(exist_ok=True)
    lines = []
    for i, row in enumerate(rows):
        soundfile.write(folder / f"{name}-{i}.wav", row["audio"]["array"], 16000)
        lines.append(json.dumps({"audio": f"{name}-{i}.wav", "speaker": row["speaker"]}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))
    return str(folder / f"{name}.jsonl")


@pytest.mark.slow
def test_script_learns_and_its_encoder_is_trained_on(tmp_path, capsys):
    script = load_example("train_speaker_encoder")
    metrics = script.main([*TINY, "--output_dir", str(tmp_path / "first")])
    assert metrics["eval_loss"] < metrics["before"] and metrics["eval_accuracy"] > 0.6
    printed = capsys.readouterr().out
    assert "speaker_encoder.xvector" in printed and "'margin'" in printed and "equal error rate" in printed

    train = write_rows(tmp_path / "rows", "train", recordings(8, seconds=1.0))
    unseen = [{**row, "speaker": f"new {row['speaker']}"} for row in recordings(4, seed=1)]
    held_out = write_rows(tmp_path / "rows", "eval", unseen)
    arguments = [*TINY, "--output_dir", str(tmp_path / "second"), "--train_data", train, "--noise_data", train]
    arguments += ["--speaker_encoder", str(tmp_path / "first" / "speaker_encoder"), "--max_steps", "4"]
    arguments += ["--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "2"]
    metrics = script.main([*arguments, "--eval_data", held_out])
    assert "eval_loss" not in metrics or metrics["eval_loss"] is None
    assert 0 <= metrics["eval_equal_error_rate"] <= 1
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["margin_start_batches"], config["margin_full_batches"]) == (1, 2)
    expected = AutoModel.from_pretrained(tmp_path / "second" / "speaker_encoder").state_dict()
    shutil.rmtree(tmp_path / "second" / "checkpoint-4")  # a run that was killed before it was saved
    script.main([*arguments, "--eval_data", held_out, "--resume_from_checkpoint", "auto"])
    again = AutoModel.from_pretrained(tmp_path / "second" / "speaker_encoder").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_script_refuses_bad_arguments(tmp_path):
    script, output = load_example("train_speaker_encoder"), ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="train_data"):
        script.main(output)
    with pytest.raises(ValueError, match="margin_start"):
        script.main([*TINY, *output, "--margin_start", "0.5", "--margin_full", "0.3"])
    lonely = write_rows(tmp_path / "rows", "one", recordings(2))
    with pytest.raises(ValueError, match="equal error rate needs pairs"):
        script.main([*TINY, *output, "--eval_data", lonely])
