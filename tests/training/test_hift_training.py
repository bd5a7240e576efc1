"""Adversarial training of HiFT: gradients, excitation, exact resumption, the script."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, Trainer, TrainingArguments

from dualspeech import HiFTModel
from dualspeech.modeling.audio_features import vocoder_log_mel
from dualspeech.modeling.hift_convolutions import WholeSignal
from dualspeech.training.adversarial_losses import (
    HIFT_TERMS,
    discriminator_loss,
    generator_losses,
    relativistic_loss,
)
from dualspeech.training.codec_segments import DatasetEpochCallback
from dualspeech.training.configuration_hift_training import HiFTTrainingConfig
from dualspeech.training.discriminators import Judgement
from dualspeech.training.fundamental_frequency import recordings_f0
from dualspeech.training.hift_training import HiFTForTraining
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.trainer import LogBeforeSaving
from dualspeech.training.vocoder_segments import VocoderSegments
from tests.examples.running import load_example
from tests.training.vocoder_cases import DISCRIMINATORS, HOP, RATE, batch, recordings, training_model


class PartsTrainer(LossPartsMixin, Trainer):
    pass


def gradients(module):
    return {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }


def test_gradients_do_not_mix():
    """One backward pass gives what two passes give, in which the other half is frozen."""
    inputs = batch()
    model = training_model().eval()  # noise of a seed; the losses are those of training
    model(**inputs).loss.backward()
    joint = gradients(model.vocoder), gradients(model.discriminators)
    assert set(joint[1]) == {name for name, _ in model.discriminators.named_parameters()}
    assert all(gradient.any() for gradient in joint[0].values())

    model = training_model().eval()
    output, real = model.vocoder(inputs["mel"]), inputs["input_values"]
    fake = output.waveform[:, None]
    sides = model.discriminators(real), model.discriminators(fake.detach())
    (discriminator_loss(*sides, terms=HIFT_TERMS) + relativistic_loss(*sides)).backward()
    judges = gradients(model.discriminators)
    assert not gradients(model.vocoder)
    for name, gradient in judges.items():
        assert torch.allclose(joint[1][name], gradient, rtol=1e-4, atol=1e-7), name

    model.discriminators.requires_grad_(False)
    for_real, heard = model.discriminators(real), model.discriminators(fake)
    adversarial, matching = generator_losses(for_real, heard, terms=HIFT_TERMS)
    mel_loss = 0.0
    for window in (160, 96):
        shape = (10, RATE, window, window // 4, RATE / 2)
        mel_loss = mel_loss + (vocoder_log_mel(real, *shape) - vocoder_log_mel(fake, *shape)).abs().mean()
    f0_loss = (output.f0 - inputs["f0"]).abs().mean()
    (45 * mel_loss + adversarial + 2 * matching + relativistic_loss(heard, for_real) + f0_loss).backward()
    for name, gradient in gradients(model.vocoder).items():
        assert torch.allclose(joint[0][name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max()), name


def test_no_gradient_through_the_phase():
    """The f0 predictor hears of its own loss alone, whatever the excitation does; the mixing of sines is taught."""
    model = training_model(f0_loss_weight=0.0).train()
    with torch.no_grad():
        model.vocoder.f0_predictor.classifier.bias.fill_(150.0)  # voiced
    model(**batch()).loss.backward()
    assert not any(gradient.any() for gradient in gradients(model.vocoder.f0_predictor).values())
    assert gradients(model.vocoder.m_source)["l_linear.weight"].any()


def test_loss_is_the_weighted_sum_of_its_parts():
    weights = {"mel_loss": 7.0, "adversarial_loss": 0.5, "feature_loss": 3.0, "f0_loss": 0.25}
    weights |= {"relativistic_loss": 2.0}
    model = training_model(**{f"{name}_weight": weight for name, weight in weights.items()}).eval()
    output = model(**batch())
    parts = sum(weight * output[name].item() for name, weight in weights.items())
    assert output.loss.item() == pytest.approx(parts + output.discriminator_loss.item(), rel=1e-5)
    without = training_model(relativistic_loss_weight=0.0).eval()(**batch())
    assert without.relativistic_loss is None and without.discriminator_loss < output.discriminator_loss


def test_terms_and_relativistic_loss_written_out():
    generator = torch.Generator().manual_seed(0)

    def judged():
        parts = [
            Judgement(torch.randn(2, 9, generator=generator), [torch.randn(2, 3, generator=generator)])
            for _ in range(2)
        ]
        return {"period": parts, "resolution": parts[:1]}

    real, fake = judged(), judged()
    pairs = [(a, b) for kind in real for a, b in zip(real[kind], fake[kind], strict=True)]
    expected = sum((1 - a.scores).square().mean() + b.scores.square().mean() for a, b in pairs)
    assert discriminator_loss(real, fake, terms=HIFT_TERMS).item() == pytest.approx(expected.item())
    adversarial, matching = generator_losses(real, fake, terms=HIFT_TERMS)
    assert adversarial.item() == pytest.approx(sum((1 - b.scores).square().mean() for _, b in pairs).item())
    distances = sum((a.features[0] - b.features[0]).abs().mean() for a, b in pairs)
    assert matching.item() == pytest.approx(distances.item())

    expected = 0.0
    for a, b in pairs:
        difference = sorted((a.scores - b.scores).flatten().tolist())
        median = difference[(len(difference) - 1) // 2]
        below = [(d - median) ** 2 for d in difference if d < median]
        expected += min(sum(below) / len(below), 0.7)
    assert relativistic_loss(real, fake, tau=0.7).item() == pytest.approx(expected, rel=1e-5)
    assert relativistic_loss(real, real).item() == 0.0  # no NaN where all scores differ alike


def test_excitation_follows_the_true_f0_at_first():
    model, inputs = training_model(target_f0_batches=1, f0_loss_weight=0.0).train(), batch()
    sources = []
    model.vocoder.m_source.register_forward_hook(lambda module, arguments, output: sources.append(arguments[0]))
    for _ in range(2):
        model(**inputs)
    predicted = model.vocoder.f0_predictor(inputs["mel"], WholeSignal())
    assert torch.equal(sources[0], inputs["f0"]) and torch.equal(sources[1], predicted)
    model.num_batches.zero_()
    state = torch.get_rng_state()
    model.eval()(**inputs)
    assert torch.equal(sources[2], predicted) and torch.equal(torch.get_rng_state(), state)
    assert model.num_batches == 0


def test_warmup_rests_the_discriminators():
    model = training_model(mel_warmup_batches=2).train()
    for step in range(3):
        model.zero_grad()
        output = model(**batch())
        output.loss.backward()
        assert (output.discriminator_loss is None) == (output.adversarial_loss is None) == (step < 2)
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert any(gradient.any() for gradient in gradients(model.discriminators).values()) == (step == 2)


def test_new_vocoder_hears_its_mel_frames():
    """f0 does not vanish in a new predictor: its size is that of PyTorch's initialisation."""
    model = training_model().eval()
    f0 = model.vocoder(batch()["mel"]).f0
    assert f0.std(dim=1).min() > 1e-2
    assert HiFTModel(model.config.vocoder_config).eval()(batch()["mel"]).f0.std(dim=1).max() < 1e-3


def test_bad_input_is_refused():
    model = training_model()
    least = model.config.min_frames
    assert least == math.ceil(129 / HOP)
    model(**batch(frames=least))
    with pytest.raises(ValueError, match=f"at least {least} frames"):
        model(**batch(frames=least - 1))
    for name, value in (("f0", torch.zeros(3, 19)), ("input_values", torch.zeros(3, 20 * HOP))):
        with pytest.raises(ValueError, match=name):
            model(**{**batch(), name: value})
    with pytest.raises(ValueError, match="return_loss"):
        model(**batch(), return_loss=False)
    for change in ({"periods": []}, {"mel_loss_windows": []}, {"f0_loss_weight": -1.0}, {"relativistic_tau": 0.0}):
        with pytest.raises(StrictDataclassError, match=next(iter(change))):
            HiFTTrainingConfig(**change)
    with pytest.raises(ValueError, match="weight norm folded"):
        HiFTForTraining.from_vocoder(model.vocoder.fold_weight_norm())


def segments(count, training=True, seed=0):
    rows, config = recordings(count, seed), training_model().config.vocoder_config
    f0 = recordings_f0(rows, RATE, HOP)
    return VocoderSegments(rows, f0, 20, config, max_frequency=4000.0, training=training, seed=3)


def trainer(folder, max_steps=6, **kwargs):
    arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    arguments |= {"max_grad_norm": 0.0, "logging_steps": 1, "save_steps": 2, "seed": 3, "report_to": "none"}
    arguments |= {"disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "cosine", **kwargs}
    return PartsTrainer(
        training_model(target_f0_batches=5),
        TrainingArguments(folder, max_steps=max_steps, **arguments),
        train_dataset=segments(10),
        eval_dataset=segments(3, training=False, seed=1),
        callbacks=[DatasetEpochCallback(), LogBeforeSaving()],
    )


@pytest.mark.slow
def test_resumed_training_is_the_same(tmp_path):
    whole = trainer(tmp_path)
    whole.train()
    resumed = trainer(tmp_path / "again")
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()  # everything comes from the checkpoint
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    state = resumed.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    logs = [{entry["step"]: entry.get("mel_loss") for entry in t.state.log_history} for t in (whole, resumed)]
    assert logs[0] == {**logs[0], **logs[1]}
    vocoder, info = AutoModel.from_pretrained(tmp_path / "checkpoint-6" / "vocoder", output_loading_info=True)
    assert isinstance(vocoder, HiFTModel) and not info["missing_keys"] and not info["unexpected_keys"]
    mel = batch()["mel"]
    assert torch.equal(vocoder(mel).waveform, whole.model.vocoder.eval()(mel).waveform)
    reloaded = HiFTForTraining.from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.equal(value, state[name]) for name, value in reloaded.state_dict().items())
    metrics = whole.evaluate()
    parts = {"mel", "adversarial", "feature", "relativistic", "f0", "discriminator"}
    assert {f"eval_{part}_loss" for part in parts} | {"eval_loss"} <= set(metrics)
    tuned = HiFTForTraining.from_vocoder(vocoder, **DISCRIMINATORS)
    assert tuned.vocoder is vocoder and torch.equal(tuned.vocoder.conv_pre.bias, state["vocoder.conv_pre.bias"])


TINY = ["--tiny", "--disable_tqdm", "true", "--use_cpu", "true"]


def test_script_learns_and_its_vocoder_loads(tmp_path, capsys):
    script = load_example("train_vocoder")
    f0_file = tmp_path / "f0.safetensors"
    metrics = script.main([*TINY, "--output_dir", str(tmp_path), "--f0_file", str(f0_file)])
    assert metrics["eval_loss"] < 0.7 * metrics["before"] and metrics["eval_mel_loss"] < 2.5
    assert metrics["eval_f0_loss"] < 180 and f0_file.is_file()
    printed = capsys.readouterr().out
    assert "discriminators.resolution" in printed and "'relativistic_loss'" in printed and "steps: 20" in printed
    vocoder = AutoModel.from_pretrained(tmp_path / "vocoder")
    assert vocoder(torch.zeros(1, 80, 5)).waveform.shape == (1, 5 * 320)

    arguments = [*TINY, "--output_dir", str(tmp_path / "voice"), "--vocoder", str(tmp_path / "vocoder")]
    script.main([*arguments, "--f0_file", str(f0_file), "--max_steps", "2", "--mel_warmup_steps", "1"])
    voice = AutoModel.from_pretrained(tmp_path / "voice" / "vocoder")
    assert voice.hop_length == 320 and not torch.equal(voice.conv_pre.bias, vocoder.conv_pre.bias)
    with pytest.raises(ValueError, match=r"f0.safetensors.*recordings"):
        script.main([*arguments, "--f0_file", str(f0_file), "--tiny_rows", "8"])
    with pytest.raises(ValueError, match="segment_frames"):
        script.main([*arguments, "--segment_frames", "1"])
    with pytest.raises(ValueError, match="train_data"):
        script.main(["--output_dir", str(tmp_path / "voice")])
