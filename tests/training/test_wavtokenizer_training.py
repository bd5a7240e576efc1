"""Adversarial training of WavTokenizer: gradients, segments, exact resumption, several processes, the script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, Trainer, TrainingArguments

from dualspeech import WavTokenizerModel
from dualspeech.training.adversarial_losses import codec_log_mel, discriminator_loss, generator_losses
from dualspeech.training.codec_segments import CodecSegments, DatasetEpochCallback
from dualspeech.training.configuration_wavtokenizer_training import WavTokenizerTrainingConfig
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.trainer import LogBeforeSaving
from dualspeech.training.wavtokenizer_training import WavTokenizerForTraining
from tests.examples.running import load_example
from tests.training.codec_cases import DISCRIMINATORS, recordings, segments, training_model

ROOT = Path(__file__).parents[2]


class PartsTrainer(LossPartsMixin, Trainer):
    pass


def gradients(module):
    return {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }


def test_gradients_do_not_mix():
    """One backward pass gives what two passes give, in which the other half is frozen."""
    audio, ids = segments(), torch.tensor(2)
    model = training_model().eval()  # without dropout; the losses are those of training
    model(audio, bandwidth_id=ids).loss.backward()
    joint = gradients(model.codec), gradients(model.discriminators)
    assert set(joint[1]) == {name for name, _ in model.discriminators.named_parameters()}
    assert all(gradient.any() for gradient in joint[0].values())

    model = training_model().eval()
    output = model.codec(audio, bandwidth_id=ids)
    fake = output.audio_values.detach()
    discriminator_loss(model.discriminators(audio, ids), model.discriminators(fake, ids)).backward()
    judges = gradients(model.discriminators)
    assert not gradients(model.codec)
    for name, gradient in judges.items():
        assert torch.allclose(joint[1][name], gradient, rtol=1e-4, atol=1e-7), name

    model.discriminators.requires_grad_(False)
    shape = (24000, 256, 64, 10)
    mel_loss = (codec_log_mel(audio, *shape) - codec_log_mel(output.audio_values, *shape)).abs().mean()
    adversarial, matching = generator_losses(
        model.discriminators(audio, ids), model.discriminators(output.audio_values, ids)
    )
    (45 * mel_loss + adversarial + matching + 1000 * output.commitment_loss).backward()
    for name, gradient in gradients(model.codec).items():
        assert torch.allclose(joint[0][name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max()), name


def test_loss_is_the_weighted_sum_of_its_parts():
    weights = {"mel_loss": 7.0, "commitment_loss": 11.0, "adversarial_loss": 0.5, "feature_loss": 3.0}
    model = training_model(**{f"{name}_weight": weight for name, weight in weights.items()}).eval()
    output = model(segments())
    parts = sum(weight * output[name].item() for name, weight in weights.items())
    assert output.loss.item() == pytest.approx(parts + output.discriminator_loss.item(), rel=1e-5)
    silent = training_model(resolution_loss_weight=0.0).eval()(segments())
    assert silent.discriminator_loss < output.discriminator_loss


def test_only_training_mode_follows_and_draws():
    model = training_model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model(segments())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(segments())
    assert model.num_batches == 1 and model.codec.quantizer.initialized
    assert not torch.equal(model.codec.quantizer.embed, before["codec.quantizer.embed"])
    ids = {int(model._class_ids(None)) for _ in range(60)}
    assert ids == {0, 1, 2, 3}


def test_warmup_rests_the_discriminators():
    model = training_model(mel_warmup_batches=2).train()
    for step in range(3):
        model.zero_grad()
        output = model(segments())
        output.loss.backward()
        assert (output.discriminator_loss is None) == (output.adversarial_loss is None) == (step < 2)
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert any(gradient.any() for gradient in gradients(model.discriminators).values()) == (step == 2)


def test_frozen_encoder_keeps_the_codes(tmp_path):
    trained = training_model().train()
    trained(segments())
    codec = trained.codec
    embed = codec.quantizer.embed.clone()
    model = WavTokenizerForTraining.from_codec(codec, freeze_encoder=True, **DISCRIMINATORS).train()
    assert model.codec is codec and torch.equal(codec.quantizer.embed, embed)
    model(segments()).loss.backward()
    assert torch.equal(codec.quantizer.embed, embed) and not gradients(codec.encoder)
    assert all(gradient.isfinite().all() for gradient in gradients(codec).values()) and gradients(codec.backbone)
    with pytest.raises(ValueError, match="never trained"):
        WavTokenizerForTraining.from_codec(training_model().codec, freeze_encoder=True)


def test_bad_input_is_refused():
    model = training_model()
    with pytest.raises(ValueError, match="at least 129 samples"):
        model(segments(samples=128))
    with pytest.raises(ValueError, match="return_loss"):
        model(segments(), return_loss=False)
    for change in ({"periods": []}, {"dac_windows": [0]}, {"mel_loss_weight": -1.0}, {"mel_hop_length": 0}):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            WavTokenizerTrainingConfig(**change)


def test_segments_written_out():
    rows = recordings(count=3)
    data = CodecSegments(rows, 1500, seed=5)
    long = {"audio": {"array": np.arange(1, 4001, dtype=np.float32) / 8000, "sampling_rate": 24000}}
    starts = set()
    for epoch in range(30):
        one = CodecSegments([long], 1500, seed=5)
        one.set_epoch(epoch)
        values = one[0]["input_values"]
        assert values.shape == (1, 1500) and values.dtype == torch.float32
        step = float(values[0, -1] - values[0, 0]) / 1499
        level = 20 * np.log10(4000 * step)  # of the peak of the whole recording
        assert -6.01 <= level <= -0.99
        starts.add(round(float(values[0, 0]) / step))
    assert min(starts) >= 1 and max(starts) <= 2501 and len(starts) > 25
    short = CodecSegments([{"audio": long["audio"]["array"][:400]}], 1000)[0]["input_values"][0]
    assert torch.equal(short[:400], short[400:800]) and torch.equal(short[:200], short[800:])
    fixed = CodecSegments([long], 1500, training=False)[0]["input_values"][0]
    assert fixed[0].item() == pytest.approx(10 ** (-3 / 20) / 4000, rel=1e-4)
    first = [data[i]["input_values"] for i in range(3)]
    assert all(torch.equal(data[i]["input_values"], first[i]) for i in (2, 0, 1))
    data.set_epoch(1)
    assert not torch.equal(data[0]["input_values"], first[0])
    assert not CodecSegments([{"audio": np.zeros(50, np.float32)}], 100)[0]["input_values"].any()


def test_bad_recordings_are_refused():
    with pytest.raises(ValueError, match=r"file.jsonl:7: .*needs 'audio'"):
        CodecSegments([{"text": "a", "source": "file.jsonl:7"}], 100)[0]
    with pytest.raises(ValueError, match=r"row 0: .*16000 Hz"):
        CodecSegments(recordings(rate=16000), 100)[0]
    assert CodecSegments(recordings(rate=16000), 100, resample=True)[0]["input_values"].shape == (1, 100)
    with pytest.raises(ValueError, match="got none"):
        CodecSegments([], 100)
    with pytest.raises(ValueError, match="num_samples"):
        CodecSegments(recordings(), 0)


def trainer(folder, max_steps=6, **kwargs):
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    arguments |= {"max_grad_norm": 0.0, "logging_steps": 1, "save_steps": 3, "weight_decay": 0.01, "seed": 3}
    arguments |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "cosine", **kwargs}
    return PartsTrainer(
        training_model(),
        TrainingArguments(folder, max_steps=max_steps, **arguments),
        train_dataset=CodecSegments(recordings(10), 1200, seed=3),
        eval_dataset=CodecSegments(recordings(3, seed=1), 1200, training=False),
        callbacks=[DatasetEpochCallback(), LogBeforeSaving()],
    )


# within the first epoch of 3 steps, and at its end
@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_training_is_the_same(tmp_path, save_steps):
    whole = trainer(tmp_path, save_steps=save_steps)
    whole.train()
    resumed = trainer(tmp_path / "again", save_steps=save_steps)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()  # everything comes from the checkpoint
    resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{save_steps}")
    state = resumed.model.state_dict()
    assert {"codec.quantizer.cluster_size", "discriminators.period.0.projection.classes.weight"} < set(state)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    logs = [{entry["step"]: entry.get("mel_loss") for entry in t.state.log_history} for t in (whole, resumed)]
    assert logs[0] == {**logs[0], **logs[1]}
    codec, info = AutoModel.from_pretrained(tmp_path / "checkpoint-6" / "codec", output_loading_info=True)
    assert isinstance(codec, WavTokenizerModel) and not info["missing_keys"] and not info["unexpected_keys"]
    codes = codec.encode(segments()).audio_codes
    assert torch.equal(codes, whole.model.codec.eval().encode(segments()).audio_codes)
    reloaded = WavTokenizerForTraining.from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.equal(value, state[name]) for name, value in reloaded.state_dict().items())


def test_evaluation_reports_all_parts(tmp_path):
    metrics = trainer(tmp_path, save_strategy="no").evaluate()
    parts = {"mel", "adversarial", "feature", "commitment", "discriminator"}
    assert {f"eval_{part}_loss" for part in parts} | {"eval_loss", "eval_perplexity"} <= set(metrics)


@pytest.mark.slow
def test_two_processes_keep_one_model(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "tests.training.wavtokenizer_two_ranks", str(tmp_path)]
    subprocess.run([sys.executable, *launch, *script], check=True, cwd=ROOT, timeout=300)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["state"] == ranks[1]["state"] and len(ranks[0]["loss"]) == 3


TINY = ["--tiny", "--disable_tqdm", "true", "--use_cpu", "true"]


def test_script_learns_and_its_codec_loads(tmp_path, capsys):
    script = load_example("train_wavtokenizer")
    metrics = script.main([*TINY, "--output_dir", str(tmp_path), "--tiny_rows", "12"])
    assert metrics["eval_loss"] < 0.8 * metrics["before"] and metrics["eval_mel_loss"] < 6.0
    printed = capsys.readouterr().out
    assert "discriminators.dac_band" in printed and "'discriminator_loss'" in printed and "steps: 20" in printed
    codec = AutoModel.from_pretrained(tmp_path / "codec")
    assert codec.decode(codec.encode(torch.zeros(1, 1, 2400)).audio_codes).audio_values.shape == (1, 1, 2400)

    arguments = [*TINY, "--output_dir", str(tmp_path / "voice"), "--codec", str(tmp_path / "codec")]
    arguments += ["--freeze_encoder", "--no_dac_discriminators", "--max_steps", "2", "--mel_warmup_steps", "1"]
    arguments += ["--tiny_rows", "8"]
    script.main(arguments)
    voice = AutoModel.from_pretrained(tmp_path / "voice" / "codec")
    assert torch.equal(voice.quantizer.embed, codec.quantizer.embed)
    assert not torch.equal(voice.head.linear.weight, codec.head.linear.weight)
    with pytest.raises(ValueError, match="freeze_encoder"):
        script.main([*TINY, "--output_dir", str(tmp_path / "voice"), "--freeze_encoder"])
    with pytest.raises(ValueError, match="train_data"):
        script.main(["--output_dir", str(tmp_path / "voice")])
