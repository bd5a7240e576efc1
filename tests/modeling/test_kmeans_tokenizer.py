"""Semantic codes from a speech encoder and k-means, and fitting the centroids."""

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import AutoConfig, AutoModel, MimiConfig, Wav2Vec2FeatureExtractor

from dualspeech import KMeansTokenizerConfig, KMeansTokenizerModel
from dualspeech.modeling.audio_parts import SemanticTokenizer
from dualspeech.training.fit_kmeans import fit_kmeans, main

from . import tiny_audio_parts as tiny

LENGTHS = (4000, 2501, 4000, 1100)


def tokenizer(encoder=None, **kwargs):
    model = KMeansTokenizerModel.from_encoder(encoder or tiny.hubert(), **{"codebook_size": 9, **kwargs}).eval()
    # Centroids where the features are: every code is used.
    features, mask = model.extract_features(*tiny.waveforms(8000, seed=5))
    frames = features[mask]
    model.centroids.copy_(frames[torch.linspace(0, len(frames) - 1, model.codebook_size).long()])
    return model


def test_attributes():
    model = tokenizer(sampling_rate=8000)
    assert isinstance(model, SemanticTokenizer)
    assert (model.codebook_size, model.frame_rate, model.sampling_rate) == (9, 100.0, 8000)
    assert model.centroids.shape == (9, 16) and "centroids" in model.state_dict()


@pytest.mark.parametrize("encoder", [tiny.hubert, tiny.wavlm])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("layer", [-1, 1])
def test_batch_equals_singles(encoder, norm, stable, layer):
    model = tokenizer(encoder(feat_extract_norm=norm, do_stable_layer_norm=stable), layer=layer)
    values, lengths = tiny.waveforms(*LENGTHS)
    features, mask = model.extract_features(values, lengths)
    batch = model.encode_waveform(values, lengths)
    assert batch.codes.dtype == torch.long and batch.codes.shape == batch.codes_mask.shape == features.shape[:2]
    assert batch.codes.unique().numel() > 3 and not batch.codes[~mask].any() and not features[~mask].any()
    for row, length in enumerate(lengths.tolist()):
        single, _ = model.extract_features(values[row : row + 1, :length])
        frames = single.shape[1]
        assert frames == int(model.encoder._get_feat_extract_output_lengths(torch.tensor(length)))
        assert torch.equal(mask[row].nonzero()[:, 0], torch.arange(frames))
        torch.testing.assert_close(features[row, :frames], single[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(batch.codes[row, :frames], model.encode_waveform(values[row : row + 1, :length]).codes[0])


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("layer", [-1, 0, 2, 3])
def test_codes_equal_the_documented_use_of_the_encoder(do_normalize, layer):
    model = tokenizer(do_normalize=do_normalize, layer=layer)
    values = tiny.waveforms(3000)[0]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    inputs = extractor(values[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        outputs = model.encoder(inputs, output_hidden_states=True)
    states = outputs.last_hidden_state if layer < 0 else outputs.hidden_states[layer]
    expected = torch.cdist(states[0], model.centroids).argmin(-1)
    assert torch.equal(model(values).codes[0], expected)


def test_an_encoder_cut_at_the_layer_gives_the_same_codes():
    model = tokenizer(layer=2)
    config = KMeansTokenizerConfig.from_dict(model.config.to_dict())
    config.encoder_config.num_hidden_layers = 2
    short = KMeansTokenizerModel(config).eval()
    result = short.load_state_dict(model.state_dict(), strict=False)
    assert not result.missing_keys and all("layers.2" in name for name in result.unexpected_keys)
    values, lengths = tiny.waveforms(*LENGTHS)
    assert torch.equal(short.encode_waveform(values, lengths).codes, model.encode_waveform(values, lengths).codes)


def test_nearest_centroid_and_lowest_of_equals():
    model = tokenizer()
    model.centroids[7] = model.centroids[2]
    features = torch.cat([model.centroids, torch.randn(50, 16)])
    codes = model.quantize(features)
    assert codes[7] == codes[2] == 2
    naive = torch.stack([(model.centroids - x).square().sum(1) for x in features])
    torch.testing.assert_close(naive.gather(1, codes[:, None])[:, 0], naive.min(1).values)


def test_frozen_use():
    model = tokenizer(tiny.wavlm(mask_time_prob=0.5, mask_time_length=2, layerdrop=0.9))
    values, lengths = tiny.waveforms(*LENGTHS)
    expected = model.encode_waveform(values, lengths).codes
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_waveform(values, lengths).codes, expected)
    assert model.encoder.training


@pytest.mark.parametrize("encoder", [tiny.hubert, tiny.wavlm])
def test_save_and_load(tmp_path, encoder):
    model = tokenizer(encoder(), layer=2, do_normalize=False)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is KMeansTokenizerModel and torch.equal(loaded.centroids, model.centroids)
    values, lengths = tiny.waveforms(*LENGTHS)
    assert torch.equal(loaded.encode_waveform(values, lengths).codes, model.encode_waveform(values, lengths).codes)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.layer, config.do_normalize, config.codebook_size) == (2, False, 9)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


def test_lower_precision_keeps_the_centroids(tmp_path):
    model = tokenizer()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.centroids.dtype == torch.float32 and loaded.encoder.dtype == torch.bfloat16
    values, lengths = tiny.waveforms(*LENGTHS)
    codes = loaded.encode_waveform(values, lengths)
    expected = model.encode_waveform(values, lengths)
    assert (codes.codes == expected.codes)[expected.codes_mask].float().mean() > 0.8
    for cast in (model.bfloat16, nn.ModuleList([model]).half):
        cast()
        assert torch.equal(model.centroids, loaded.centroids) and model.encoder.dtype != torch.float32
    assert AutoModel.from_config(model.config, dtype=torch.bfloat16).centroids.dtype == torch.float32
    assert model.double().centroids.dtype == torch.float64


def test_distances_do_not_depend_on_autocast():
    model, features = tokenizer(), torch.randn(500, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.quantize(features)
    assert torch.equal(inside, model.quantize(features))


def test_new_centroids_are_drawn():
    model = KMeansTokenizerModel(KMeansTokenizerConfig(encoder_config=tiny.hubert().config, codebook_size=200))
    assert model.centroids.isfinite().all() and 0.9 < float(model.centroids.std()) < 1.1


def test_fit_equals_scikit_learn(tmp_path):
    from sklearn.cluster import MiniBatchKMeans

    model = KMeansTokenizerModel.from_encoder(tiny.hubert(), codebook_size=5)
    encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    batches = [tiny.waveforms(4000, 3000, seed=1), (tiny.waveforms(3500, seed=2)[0], None)]
    inertia = fit_kmeans(model, batches, seed=3)
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in encoder.items())

    frames = torch.cat([model.extract_features(*batch)[0][model.extract_features(*batch)[1]] for batch in batches])
    kmeans = MiniBatchKMeans(
        5, batch_size=10_000, n_init=20, max_no_improvement=100, tol=0.0, reassignment_ratio=0.0, random_state=3
    ).fit(frames.numpy())
    np.testing.assert_allclose(model.centroids.numpy(), kmeans.cluster_centers_, rtol=1e-5, atol=1e-6)
    distances = torch.cdist(frames, model.centroids).square()
    assert inertia == pytest.approx(float(distances.min(1).values.mean()), rel=1e-3)

    values, lengths = tiny.waveforms(2000, 1500, seed=9)
    features, mask = model.extract_features(values, lengths)
    codes = model.encode_waveform(values, lengths)
    assert codes.codes[mask].tolist() == kmeans.predict(features[mask].numpy()).tolist()

    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode_waveform(values, lengths).codes, codes.codes)


def test_fit_errors():
    model = KMeansTokenizerModel.from_encoder(tiny.hubert(), codebook_size=30)
    batch = tiny.waveforms(1000)
    with pytest.raises(ValueError, match="`batches` gave 12 frames, at least 30"):
        fit_kmeans(model, [batch])
    with pytest.raises(ValueError, match="`fraction`"):
        fit_kmeans(model, [batch], fraction=0.0)
    many = tiny.waveforms(16000)
    fit_kmeans(model, [many], fraction=0.5, n_init=1)
    with pytest.raises(ValueError, match="at least 30"):
        fit_kmeans(model, [many], fraction=0.05)


def test_command_line(tmp_path, capsys):
    tiny.hubert().save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    (tmp_path / "wavs/deep").mkdir(parents=True)
    for seed, name in enumerate(("a.wav", "deep/b.flac")):
        soundfile.write(tmp_path / "wavs" / name, tiny.waveforms(8000, seed=seed, scale=0.1)[0][0].numpy(), 16000)
    arguments = ["--encoder", str(tmp_path / "encoder"), "--audio-dir", str(tmp_path / "wavs")]
    arguments += ["--output", str(tmp_path / "out"), "--codebook-size", "6", "--layer", "1"]
    main(arguments)
    assert "2 files, 6 centroids" in capsys.readouterr().out
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert (model.config.layer, model.config.do_normalize, model.codebook_size) == (1, False, 6)
    assert model(tiny.waveforms(4000)[0]).codes.unique().numel() > 2

    soundfile.write(tmp_path / "wavs/c.wav", np.zeros((800, 2)), 8000)
    with pytest.raises(ValueError, match=r"c\.wav has 2 channels at 8000 Hz"):
        main(arguments)
    with pytest.raises(ValueError, match="holds no file"):
        main([*arguments[:3], str(tmp_path / "encoder"), *arguments[4:]])


def test_bad_inputs():
    model = tokenizer()
    values, lengths = tiny.waveforms(1000, 900)
    with pytest.raises(ValueError, match="NaN"):
        model.encode_waveform(values)
    with pytest.raises(ValueError, match=r"\[batch, samples\]"):
        model.encode_waveform(values[:, None], lengths)
    with pytest.raises(ValueError, match="at least 60"):
        model.encode_waveform(torch.zeros(1, 59))
    with pytest.raises(ValueError, match="1 to 1000 samples"):
        model.encode_waveform(values, [1001, 5])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codebook_size": 0}, "`codebook_size` must be positive"),
        ({"layer": 4}, "`layer` must be from -1 to 3"),
        ({"layer": -2}, "`layer` must be from -1 to 3"),
        ({"encoder_config": MimiConfig()}, "'mimi'"),
    ],
)
def test_bad_configs(kwargs, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        KMeansTokenizerConfig(**{"encoder_config": tiny.hubert().config, **kwargs})
