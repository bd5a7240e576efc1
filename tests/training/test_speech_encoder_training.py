"""Speech encoders that learn by recognition: what they get and give, the start of the codebook, data, resumption."""

import json

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import AutoFeatureExtractor, AutoModel, TrainingArguments

from dualspeech import UsTokenizerModel
from dualspeech.training.codec_segments import DatasetEpochCallback
from dualspeech.training.configuration_speech_encoder_training import SpeechEncoderForCtcConfig
from dualspeech.training.speech_augmentation import SpeechAugmentation
from dualspeech.training.speech_encoder_training import (
    SpeechEncoderForCtc,
    ctc_text,
    encoder_features,
    min_predictions,
    pad_features,
)
from dualspeech.training.speech_recognition_data import (
    SpeechRecognitionData,
    SpeechRecognitionTrainer,
    characters_of,
    check_speech_recognition_rows,
    edit_distance,
    error_rates,
    prediction_ids,
)
from tests.examples.running import load_example
from tests.tiny import tone

SIZES = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 40}
PITCHES = {"a": 300.0, "b": 600.0, "c": 1200.0, "d": 2400.0}
KINDS = pytest.mark.parametrize("kind", ["whisper", "whisper_vq"])
EVERYTHING = SpeechAugmentation(
    speed_probability=1.0,
    gain_probability=1.0,
    low_pass_probability=1.0,
    noise_probability=1.0,
    time_masks=1,
    frequency_masks=1,
)


def tiny_model(kind, positions=50, vocab_size=12, vocabulary=("a", "b", "c", "d"), **kwargs):
    torch.manual_seed(0)
    encoder = {"model_type": kind, **SIZES, "max_source_positions": positions}
    if kind == "whisper_vq":
        encoder |= {"max_source_positions": positions - positions % 4, "quantize_vocab_size": vocab_size}
        encoder |= {"quantize_loss_scale": 1.0, "quantize_ema_decay": 0.9, "quantize_restart_interval": 5}
    config = SpeechEncoderForCtcConfig(
        encoder_config=encoder,
        vocabulary=list(vocabulary),
        **{"quantize_start_batches": 3, "quantize_buffer_size": 64, **kwargs},
    )
    return SpeechEncoderForCtc(config)


def tone_rows(count, seed=0):
    """One to three letters, a tone of 0.24 s each."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        letters = draw.choice(list(PITCHES), size=draw.integers(1, 4), replace=False)
        audio = np.concatenate([tone(0.24, frequency=PITCHES[letter]) for letter in letters])
        audio += 0.01 * draw.standard_normal(len(audio)).astype(np.float32)
        rows.append({"audio": {"array": audio, "sampling_rate": 16000}, "text": "".join(letters)})
    return rows


def batch_of(rows, config):
    data = SpeechRecognitionData(rows, config)
    return data.collate([data[i] for i in range(len(data))])


def trained(model, rows, steps, learning_rate=4e-3):
    data = SpeechRecognitionData(rows, model.config)
    examples = [data[i] for i in range(len(data))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    draw = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        output = model(**data.collate([examples[i] for i in draw.integers(len(examples), size=8)]))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@KINDS
@pytest.mark.slow
def test_learns_tones(kind):
    """Unseen rows, through the codebook for Whisper-VQ."""
    model = trained(
        tiny_model(kind, quantize_start_batches=100, head_layers=int(kind == "whisper_vq")), tone_rows(48), 220
    )
    rows = tone_rows(16, seed=1)
    with torch.no_grad():
        output = model(**batch_of(rows, model.config))
    heard = model.decode(output.logits, output.num_predictions)
    errors = sum(edit_distance(row["text"], text) for row, text in zip(rows, heard, strict=True))
    assert errors / sum(len(row["text"]) for row in rows) < 0.2, heard
    assert (output.perplexity is not None) == (kind == "whisper_vq")
    if kind == "whisper_vq":
        assert output.perplexity > 3 and output.loss > output.ctc_loss


@KINDS
def test_rows_of_a_batch_are_single_rows(kind):
    model = tiny_model(kind, head_layers=1).eval()
    if kind == "whisper_vq":
        model.num_batches.fill_(3)
        torch.nn.init.normal_(model.encoder.codebook.weight, std=0.5)
    rows = tone_rows(5)
    batch = batch_of(rows, model.config)
    assert len(set(batch["num_samples"].tolist())) > 1
    with torch.no_grad():
        output = model(**batch)
        for i, row in enumerate(rows):
            single = model(**batch_of([row], model.config))
            count = int(single.num_predictions[0])
            assert count == output.num_predictions[i] == model.config.num_predictions(int(batch["num_samples"][i]))
            assert torch.allclose(output.logits[i, :count], single.logits[0], atol=2e-5)
            if kind == "whisper_vq":
                assert torch.equal(output.codes[i, : count // 4], single.codes[0])
    texts = model.decode(output.logits, output.num_predictions)
    waveforms = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row["audio"]["array"]) for row in rows], True)
    assert model.transcribe(waveforms, batch["num_samples"]) == texts


def test_loss_is_that_of_torch_per_character():
    model = tiny_model("whisper").eval()
    rows = [row | {"text": text} for row, text in zip(tone_rows(3), ["abba", "c", "dd"], strict=True)]
    batch = batch_of(rows, model.config)
    output = model(**batch)
    total = 0.0
    for i, labels in enumerate(([1, 2, 2, 1], [3], [4, 4])):
        scores = output.logits[i, : output.num_predictions[i]].log_softmax(-1)[:, None]
        lengths = torch.tensor([len(scores)]), torch.tensor([len(labels)])
        total += F.ctc_loss(scores, torch.tensor([labels]), *lengths, reduction="sum").item()
    assert output.loss.item() == pytest.approx(total / 7, rel=1e-5) and output.loss == output.ctc_loss
    assert min_predictions([1, 2, 2, 1]) == 5
    with pytest.raises(ValueError, match="rows \\[1\\]"):
        model(**{**batch, "labels": torch.tensor([[1, 2], [-100, -100], [4, 4]])})
    with pytest.raises(ValueError, match="rows \\[0\\]"):
        model(batch["input_features"], torch.tensor([320, 9000, 9000]), torch.tensor([[1, 1], [2, 1], [1, 2]]))
    with pytest.raises(ValueError, match="num_samples"):
        model(batch["input_features"], torch.tensor([320, 20000, 9000]))


def test_saved_whisper_encoder_is_that_of_the_us_tokenizer(tmp_path):
    model = tiny_model("whisper").eval()
    model.save_pretrained(tmp_path)
    tokenizer = UsTokenizerModel.from_whisper(tmp_path / "encoder", codebook_size=8, code_dim=8).eval()
    assert tokenizer.config.max_seconds == 1.0  # 50 positions
    waveform = torch.from_numpy(tone_rows(1)[0]["audio"]["array"])
    features = encoder_features(waveform, model.config)[None]
    kept = []
    tokenizer.encoder.register_forward_hook(lambda module, inputs, output: kept.append(output.last_hidden_state))
    tokenizer.encode_waveform(waveform[None])
    with torch.no_grad():
        expected = model.encoder(features).last_hidden_state
    assert torch.equal(kept[0], expected)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    extracted = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    assert torch.allclose(extracted, features, atol=1e-4)
    again = SpeechEncoderForCtc.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_positions_can_be_changed():
    """All weights stay, and the sinusoids go on."""
    model, row = tiny_model("whisper"), torch.from_numpy(tone(0.5))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.resize_positions(75)
    table = model.encoder.embed_positions.weight
    assert model.config.max_samples == 75 * 320 and len(table) == 75
    assert torch.equal(table[:25], tiny_model("whisper", positions=75).encoder.embed_positions.weight[:25])
    for name, value in model.state_dict().items():
        assert "embed_positions" in name or torch.equal(value, weights[name]), name
    assert encoder_features(row, model.config).shape[-1] == 150
    assert model.transcribe(row[None])
    with pytest.raises(ValueError, match="learned"):
        tiny_model("whisper_vq").resize_positions(75)


def test_saved_whisper_vq_gives_the_codes_of_the_training(tmp_path):
    model = trained(tiny_model("whisper_vq"), tone_rows(8), 3)
    assert model.is_quantizing
    model.save_pretrained(tmp_path)
    rows = tone_rows(6, seed=2)
    batch = batch_of(rows, model.config)
    with torch.no_grad():
        codes = model(**batch).codes
    assert codes.unique().numel() > 2
    encoder = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    waveforms = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row["audio"]["array"]) for row in rows], True)
    encoded = encoder.encode_waveform(waveforms, batch["num_samples"])
    assert torch.equal(encoded.codes, codes)
    again = SpeechEncoderForCtc.from_pretrained(tmp_path)
    assert again.is_quantizing and torch.equal(again.encoder.codebook.weight, model.encoder.codebook.weight)


def test_codebook_starts_from_the_last_vectors():
    model = tiny_model("whisper_vq", quantize_buffer_size=40)
    batch = batch_of(tone_rows(4), model.config)
    before = model.encoder.codebook.weight.clone()
    for step in range(3):
        assert not model.is_quantizing and torch.equal(model.encoder.codebook.weight, before)
        output = model.train()(**batch)
        assert output.codes is None and output.loss == output.ctc_loss, step
    assert model.is_quantizing and not torch.equal(model.encoder.codebook.weight, before)
    with torch.no_grad():
        vectors = model.recent_vectors
        distance = torch.cdist(vectors, model.encoder.codebook.weight).min(dim=1).values.square().mean()
        assert distance < 0.5 * vectors.var(dim=0).sum()
    assert torch.allclose(
        model.encoder.ema_weight / model.encoder.ema_count[:, None], model.encoder.codebook.weight, atol=1e-2
    )
    start = model.encoder.codebook.weight.clone()
    with torch.no_grad():
        evaluated = model.eval()(**batch)
    assert torch.equal(model.encoder.codebook.weight, start) and int(model.num_batches) == 3
    output = model.train()(**batch)
    assert torch.equal(output.codes, evaluated.codes)
    output.loss.backward()
    assert model.encoder.conv1.weight.grad.any()
    assert not torch.equal(model.encoder.codebook.weight, start)


def test_unused_codes_are_restarted():
    """In the batches of the interval only, and none with a share of 0."""
    batch = batch_of(tone_rows(4), tiny_model("whisper_vq").config)
    for share, expected in ((0.05, [False] * 4 + [True]), (0.0, [False] * 5)):
        model = trained(tiny_model("whisper_vq", quantize_restart_share=share), tone_rows(4), 3).train()
        with torch.no_grad():
            model.encoder.codebook.weight[7] = 1000.0  # nothing is near it
            model.encoder.ema_weight[7], model.encoder.ema_count[7] = 1e-3, 1e-6
        moved = []
        for _ in range(5):
            model(**batch)
            moved.append(bool(model.encoder.codebook.weight[7].abs().max() < 50))
        assert moved == expected


def test_features_are_padded_to_whole_codes_or_all_positions():
    vq, whisper = tiny_model("whisper_vq").config, tiny_model("whisper").config
    assert encoder_features(torch.zeros(4000), vq).shape == (40, 32)  # 4 codes of 8 frames
    assert encoder_features(torch.zeros(4000), whisper).shape == (40, 100)
    assert (vq.num_predictions(4000), whisper.num_predictions(4000)) == (16, 12)
    assert pad_features([torch.ones(2, 3), torch.ones(2, 5)])[0].sum() == 6


def test_decoding_written_out():
    assert ctc_text([0, 1, 1, 0, 1, 2, 2, -100, -100], ["a", "b"]) == "aab"
    assert ctc_text([1, 2, 0, 2, 1, 0], [" ", "x"]) == "x x".replace(" ", "")
    assert ctc_text([2, 1, 1, 0, 1, 2], [" ", "x"]) == "x x"
    assert edit_distance("kitten", "sitting") == 3 and edit_distance([], ["a"]) == 1
    config = SpeechEncoderForCtcConfig(vocabulary=[" ", "a", "b"])
    logits = F.one_hot(torch.tensor([[2, 1, 3, 3], [3, 0, 3, 2]]), 4).float()
    labels = torch.tensor([[2, 1, 3], [3, -100, -100]])
    ids = prediction_ids((logits, torch.tensor([3, 1])), labels)
    assert ids.tolist() == [[2, 1, 3, 0], [3, 0, 0, 0]]
    metrics = error_rates(config)(type("", (), {"predictions": ids.numpy(), "label_ids": labels.numpy()}))
    assert metrics == {"wer": 0.0, "cer": 0.0}
    labels[0, 2] = 2
    metrics = error_rates(config)(type("", (), {"predictions": ids.numpy(), "label_ids": labels.numpy()}))
    assert metrics == {"wer": pytest.approx(1 / 3), "cer": pytest.approx(1 / 4)}


def test_transcripts():
    config = SpeechEncoderForCtcConfig(vocabulary=[" ", "a", "b"], removed_characters=".,")
    assert config.label_ids(" A  b,a.") == [2, 1, 3, 2]
    for text, message in (("a!", "'!'"), (" .", "no characters")):
        with pytest.raises(ValueError, match=message):
            config.label_ids(text)
    rows = [{"text": "Ab."}, {"task": "asr", "targets": {"text": "ca"}}]
    assert characters_of(rows, ".") == ["a", "b", "c"]


def test_rows_are_checked():
    config = tiny_model("whisper_vq").config
    good = tone_rows(2)
    assert check_speech_recognition_rows(good, config) == [len(row["audio"]["array"]) for row in good]
    for change, message in (
        ({"text": "abx"}, "'x'"),
        ({"text": "abcd" * 12}, "needs 48 predictions"),
        ({"text": None}, "transcript"),
        ({"audio": {"array": np.zeros(16001, np.float32), "sampling_rate": 16000}}, "accepted are"),
        ({"audio": {"array": np.zeros(9000, np.float32), "sampling_rate": 8000}}, "8000 Hz"),
    ):
        with pytest.raises(ValueError, match=message):
            check_speech_recognition_rows([good[0], good[1] | change], config)
    row = {"audio": {"array": np.zeros(6400, np.float32), "sampling_rate": 16000}, "text": "ab" * 10}
    check_speech_recognition_rows([row], config)
    with pytest.raises(ValueError, match="needs 20 predictions; the recording has 16"):
        check_speech_recognition_rows([row], config, fastest=1.3)
    with pytest.raises(ValueError, match=r"row 1: .*'x'"):
        SpeechRecognitionData([good[0], good[1] | {"text": "x"}], config)[1]


def test_augmentation_follows_from_seed_epoch_and_row():
    config = tiny_model("whisper_vq").config
    rows = tone_rows(3)
    plain = SpeechRecognitionData(rows, config)[1]
    off = SpeechRecognitionData(rows, config, SpeechAugmentation())[1]
    assert torch.equal(plain["input_features"], off["input_features"])
    first, second = (SpeechRecognitionData(rows, config, EVERYTHING, seed=3, in_memory=keep) for keep in (True, False))
    assert [second[i]["num_samples"] for i in (2, 0)] == [first[i]["num_samples"] for i in (2, 0)]
    assert torch.equal(first[1]["input_features"], second[1]["input_features"])
    lengths = set()
    for epoch in range(12):
        first.set_epoch(epoch)
        example = first[1]
        lengths.add(example["num_samples"])
        assert example["input_features"].isfinite().all() and example["num_samples"] <= config.max_samples
    low, high = (len(rows[1]["audio"]["array"]) / speed for speed in (1.1, 0.9))
    assert len(lengths) > 2 and low - 1 < min(lengths) < max(lengths) < high + 1
    for wrong in ({"noise_probability": 2.0}, {"time_masks": -1}, {"min_snr": 50.0}, {"min_speed": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))[4:]):
            SpeechAugmentation(**wrong)


def test_each_change_does_what_it_says():
    draw = np.random.default_rng(0)
    wave = torch.from_numpy(tone(0.5, frequency=1000.0) + tone(0.5, frequency=6000.0))

    def level(values, hertz):
        return float(torch.fft.rfft(values).abs()[round(hertz * len(values) / 16000)])

    dull = SpeechAugmentation(low_pass_probability=1.0, max_low_pass=4000.0).waveform(wave, draw, 16000, 10**6)
    assert level(dull, 6000) < 0.01 * level(wave, 6000) and level(dull, 1000) > 0.9 * level(wave, 1000)
    noisy = SpeechAugmentation(noise_probability=1.0, min_snr=10.0, max_snr=10.0).waveform(wave, draw, 16000, 10**6)
    ratio = wave.square().mean() / (noisy - wave).square().mean()
    assert 10 * ratio.log10() == pytest.approx(10.0, abs=0.01)
    loud = SpeechAugmentation(gain_probability=1.0, min_gain=6.0).waveform(wave, draw, 16000, 10**6)
    assert torch.allclose(loud, wave * 10**0.3)
    fast = SpeechAugmentation(speed_probability=1.0, min_speed=1.1).waveform(wave, draw, 16000, 10**6)
    assert len(fast) == -(-8000 * 20 // 22) and level(fast, 1100) > 10 * level(fast, 1000)
    slow = SpeechAugmentation(speed_probability=1.0, max_speed=0.9).waveform(wave, draw, 16000, 8000)
    assert torch.equal(slow, wave)  # there is no room for it
    features = torch.randn(20, 60)
    masked = SpeechAugmentation(time_masks=1, max_time_mask=0.5).features(features, np.random.default_rng(1), 40)
    changed = (masked != features).all(dim=0)
    assert (
        0 < changed.sum() <= 20 and not changed[40:].any() and torch.equal(masked[:, ~changed], features[:, ~changed])
    )


@KINDS
@pytest.mark.slow
def test_resumes_exactly(kind, tmp_path):
    """Across the start of the codebook, in the middle of an epoch, with all augmentation, two micro-batches a step."""
    rows = tone_rows(18)

    def run(folder, steps, **kwargs):
        model = tiny_model(kind, quantize_start_batches=13)
        data = SpeechRecognitionData(rows, model.config, EVERYTHING, lengths=[len(r["audio"]["array"]) for r in rows])
        arguments = TrainingArguments(
            folder,
            max_steps=9,
            save_steps=steps,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            train_sampling_strategy="group_by_length",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = SpeechRecognitionTrainer(
            model, arguments, data.collate, train_dataset=data, callbacks=[DatasetEpochCallback()]
        )
        trainer.train(**kwargs)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return model.state_dict(), losses

    whole, losses = run(tmp_path / "whole", 5)
    checkpoint = str(tmp_path / "whole" / "checkpoint-5")
    resumed, again = run(tmp_path / "resumed", 100, resume_from_checkpoint=checkpoint)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert again == losses
    if kind == "whisper_vq":
        assert int(whole["num_batches"]) == 18 and whole["num_recent"] > 0


@KINDS
def test_script(kind, tmp_path, capsys):
    """On files of both kinds of rows; each voice has its error rates."""
    rows = []
    for i, row in enumerate(tone_rows(10)):
        soundfile.write(tmp_path / f"{i}.wav", row["audio"]["array"], 16000)
        given = {"audio": f"{i}.wav", "metadata": {"voice": "xy"[i % 2]}}
        given |= {"text": row["text"]} if i % 3 else {"task": "asr", "targets": row["text"].upper()}
        rows.append(json.dumps(given))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe = "speech_encoder_vq" if kind == "whisper_vq" else "speech_encoder"
    arguments = ["--recipe", recipe, "--tiny", "--use_cpu", "--output_dir", str(tmp_path / "out"), "--max_steps", "4"]
    arguments += ["--train_data", str(tmp_path / "rows.jsonl"), "--eval_data", str(tmp_path / "rows.jsonl")]
    arguments += [
        "--quantize_start_steps",
        "2",
        "--save_strategy",
        "no",
        "--eval_steps",
        "4",
        "--disable_tqdm",
        "true",
    ]
    metrics = load_example("train_speech_encoder").main(arguments)
    assert {"eval_x_wer", "eval_y_cer", "eval_wer", "eval_cer", "eval_loss"} <= set(metrics)
    assert ("eval_x_perplexity" in metrics) == (kind == "whisper_vq")
    model = SpeechEncoderForCtc.from_pretrained(tmp_path / "out")
    assert set(model.config.vocabulary) == set("".join(row["text"] for row in tone_rows(10)))
    assert (tmp_path / "out" / "encoder" / "config.json").is_file()
    with pytest.raises(ValueError, match="train_data"):
        load_example("train_speech_encoder").main(["--output_dir", str(tmp_path / "none"), "--use_cpu"])
