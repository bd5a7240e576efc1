import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from dualspeech import CamPPlusConfig, CamPPlusModel, MossSpeechCodecConfig, MossSpeechCodecModel
from dualspeech.modeling.conversion import convert_cosyvoice2_to_hf as cosyvoice2
from dualspeech.modeling.conversion import convert_moss_speech_codec_to_hf as moss
from dualspeech.modeling.conversion.convert_campplus_to_hf import build_model as build_campplus
from dualspeech.modeling.conversion.released_flow_yaml import check_flow_yaml, read_flow_yaml
from dualspeech.modeling.moss_speech_voice import MossSpeechVoice
from tests.fixture_checks import FIXTURES, check, load

from .moss_codec_cases import recording
from .test_convert_flow_decoder import cosyvoice2_state, meta_state, shapes
from .test_convert_whisper_vq import RELEASED, training_module, write_folder
from .whisper_vq_cases import recorded_model, released_config

HEADS = {"estimator_head_dim": 16}  # of the recorded flow; 64 in the release
SETTINGS = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 24000
token_frame_rate: {rate}
token_mel_ratio: {ratio}
chunk_size: {chunk}
num_decoding_left_chunks: -1
spk_embed_dim: 192
flow: !new:package.that.does.not.Exist
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: {vocab}
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    pre_lookahead_len: 3
    encoder: !new:another.Class
        output_size: 512
        static_chunk_size: !ref <chunk_size>
    decoder: !new:another.Class
        estimator: !new:another.Class
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
get_mel: !name:some.function
    sampling_rate: !ref <sample_rate>
"""


@functools.cache
def released_parts():
    """Released names at small sizes: encoder, flow, vocoder, speaker encoder."""
    torch.manual_seed(0)
    speaker = CamPPlusModel(
        CamPPlusConfig(growth_rate=4, init_channels=8, head_channels=4, block_layers=(2, 2, 2), embedding_size=192)
    )
    return load("moss_codec_encoder")[0], load("moss_flow")[0], load("moss_hift")[0], speaker.state_dict()


def settings(rate=12.5, ratio=4, chunk=5, vocab=100):
    return SETTINGS.format(rate=rate, ratio=ratio, chunk=chunk, vocab=vocab)


@functools.cache
def written_repository():
    """A temporary folder laid out like the released codec, and the keys that are none of its encoder."""
    keeper = tempfile.TemporaryDirectory()
    folder = Path(keeper.name) / "released"
    encoder, flow, hift, speaker = released_parts()
    module, surplus = training_module(encoder, range(2, 4))
    write_folder(folder, module, released_config(recorded_model()[0], encoder_layers=4), shards=2)
    extractor = {"feature_size": 128, "sampling_rate": 16000, "hop_length": 160, "n_samples": 480000, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    inside = folder / "flow"
    inside.mkdir()
    (inside / "config.yaml").write_text(settings())
    (inside / "campplus.onnx").write_bytes(b"onnx")
    for number, name in enumerate(("flow.pt", "flow-chunk-5.pt", "flow-chunk-25.pt")):
        state = {key: value + number if key == "encoder_proj.bias" else value for key, value in flow.items()}
        torch.save(state | {"epoch": 3, "step": 12}, inside / name)
    torch.save(hift, inside / "hift.pt")
    torch.save(speaker, inside / "campplus_cn_common.bin")
    return keeper, folder, surplus


def moss_repository(folder, without=()):
    """The released codec in `folder`, but for the files `without`, as links; the keys that are none of its encoder."""
    _, source, surplus = written_repository()
    shutil.copytree(source, folder, copy_function=os.symlink)
    for name in without:
        (folder / name).unlink()
    return surplus


def rewrite(path, write):
    """Put another file in the place of a link."""
    path.unlink()
    write(path)


def load_codec(folder):
    codec, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(codec, MossSpeechCodecModel)
    return codec


def test_released_repository(tmp_path):
    surplus = moss_repository(tmp_path / "released")
    left_out = moss.convert(str(tmp_path / "released"), str(tmp_path / "codec"), **HEADS)
    assert sorted(left_out) == sorted(surplus)
    codec = load_codec(tmp_path / "codec")
    assert (codec.codebook_size, codec.config.flow_config.vocab_size, codec.config.flow_config.chunk_size) == (
        40,
        100,
        5,
    )
    assert (codec.frame_rate, codec.hop_length, codec.sampling_rate) == (12.5, 1920, 24000)

    _, tensors, meta = load("moss_codec_encoder")
    check(codec.encode(tensors["features"]).codes, "codes", tensors, meta)
    for case in range(6):
        codes = codec.encode_waveform(tensors[f"waveform.{case}"][None]).codes[0]
        check(codes, f"waveform_codes.{case}", tensors, meta)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "codec")
    features = extractor(tensors["waveform.3"].numpy(), sampling_rate=16000, return_tensors="pt")
    del features["num_samples"]
    assert torch.equal(codec.encode(**features).codes[0], tensors["waveform_codes.3"])

    _, tensors, meta = load("moss_flow")
    usable = tensors["codes"][0] < 40  # the encoder has fewer codes than the table of the recorded flow
    assert torch.equal(
        codec.flow.code_embedding.weight[tensors["codes"][0]],
        released_parts()[1]["input_embedding.weight"][tensors["codes"][0]],
    )
    assert codec.decode(tensors["codes"][:, usable]).shape == (1, 1, 1920 * int(usable.sum()))

    _, tensors, meta = load("moss_hift")
    waveform = codec.vocoder(tensors["mel"], source=tensors["given_source"]).waveform
    check(waveform, "decoded", tensors, meta)
    voice = codec.make_voice(recording(0.7, 44100), 44100)
    speaker = build_campplus(released_parts()[3])
    assert all(
        torch.equal(p, q) for p, q in zip(speaker.parameters(), codec.speaker_encoder.parameters(), strict=True)
    )
    assert voice.num_codes == 8 and voice.speaker_embeds.shape == (192,)


def test_variants_of_the_flow(tmp_path):
    moss_repository(tmp_path / "released")
    names = ["flow.pt", "flow-chunk-5.pt", "flow-chunk-25.pt"]
    moss.convert(str(tmp_path / "released"), str(tmp_path / "codecs"), flow=names, **HEADS)
    assert sorted(path.name for path in (tmp_path / "codecs").iterdir()) == ["flow", "flow-chunk-25", "flow-chunk-5"]
    codecs = {name: load_codec(tmp_path / "codecs" / name) for name in ("flow", "flow-chunk-5", "flow-chunk-25")}
    assert [codec.config.flow_config.chunk_size for codec in codecs.values()] == [5, 5, 25]
    biases = [codec.flow.encoder_proj.bias[0] for codec in codecs.values()]
    torch.testing.assert_close(torch.stack(biases) - biases[0], torch.tensor([0.0, 1.0, 2.0]))
    voice = codecs["flow"].make_voice(recording(0.5), 16000)
    audio = [codec.decode(torch.tensor([[3, 4, 5]]), voice=voice) for codec in codecs.values()]
    assert not torch.equal(audio[0], audio[1])
    # one variant alone, by its path, is the same
    one = tmp_path / "released" / "flow" / "flow-chunk-25.pt"
    moss.convert(str(tmp_path / "released"), str(tmp_path / "one"), flow=str(one), **HEADS)
    alone = load_codec(tmp_path / "one")
    assert alone.config.to_diff_dict() == codecs["flow-chunk-25"].config.to_diff_dict()
    torch.testing.assert_close(alone.decode(torch.tensor([[3, 4, 5]]), voice=voice), audio[2], atol=1e-5, rtol=0)


def test_speaker_encoder_from_elsewhere_or_none(tmp_path):
    moss_repository(tmp_path / "released", without=["flow/campplus_cn_common.bin"])
    arguments = (str(tmp_path / "released"), str(tmp_path / "codec"))
    with pytest.raises(ValueError, match=r"campplus.onnx' is an ONNX export. Give the torch weights .* 192"):
        moss.convert(*arguments, **HEADS)
    with pytest.raises(ValueError, match="ONNX export"):
        moss.convert(*arguments, campplus=str(tmp_path / "released" / "flow" / "campplus.onnx"), **HEADS)
    (tmp_path / "released" / "flow" / "campplus.onnx").unlink()
    with pytest.raises(ValueError, match="no speaker encoder was found"):
        moss.convert(*arguments, **HEADS)
    assert not (tmp_path / "codec").exists()
    torch.save(released_parts()[3], tmp_path / "speaker.pt")
    with pytest.raises(ValueError, match="asks for none"):
        moss.convert(*arguments, campplus=str(tmp_path / "speaker.pt"), without_speaker_encoder=True, **HEADS)
    moss.convert(*arguments, campplus=str(tmp_path / "speaker.pt"), **HEADS)
    assert load_codec(tmp_path / "codec").speaker_encoder is not None
    moss.convert(arguments[0], str(tmp_path / "without"), without_speaker_encoder=True, **HEADS)
    assert load_codec(tmp_path / "without").speaker_encoder is None
    for name in ("campplus_a.bin", "campplus_b.pt"):
        torch.save(released_parts()[3], tmp_path / "released" / name)
    with pytest.raises(ValueError, match="there are several, choose one"):
        moss.convert(arguments[0], str(tmp_path / "third"), **HEADS)


def overwrite(name, change):
    def apply(root):
        path = root / name
        state = change(torch.load(path, weights_only=True))
        rewrite(path, lambda path: torch.save(state, path))

    return apply


def replace_text(name, old, new):
    def apply(root):
        text = (root / name).read_text()
        assert old in text
        rewrite(root / name, lambda path: path.write_text(text.replace(old, new)))

    return apply


def settings_file(text):
    return lambda root: rewrite(root / "flow" / "config.yaml", lambda path: path.write_text(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overwrite("flow/flow.pt", lambda s: s | {"decoder.new": torch.zeros(1)}), "not understood: decoder.new"),
        (overwrite("flow/flow.pt", lambda s: s | {"optimizer": {"lr": 1}}), "optimizer"),
        (overwrite("flow/hift.pt", lambda s: s | {"conv_new.bias": torch.zeros(1)}), "not understood: conv_new.bias"),
        (overwrite("flow/hift.pt", lambda s: {k: v for k, v in s.items() if k != "conv_post.bias"}), "conv_post.bias"),
        (overwrite("flow/campplus_cn_common.bin", lambda s: s | {"xvector.x": torch.zeros(1)}), "xvector.x"),
        (
            replace_text("flow/config.yaml", "spk_embed_dim: 192", "spk_embed_dim: 256"),
            "spk_embed_dim 256 instead of 192",
        ),
        (replace_text("flow/config.yaml", "vocab_size: 100", "vocab_size: 99"), "flow.vocab_size 99 instead of 100"),
        (
            replace_text("flow/config.yaml", "token_mel_ratio: 4", "token_mel_ratio: 2"),
            "token_mel_ratio 2 instead of 4",
        ),
        (replace_text("config.json", '"num_mel_bins": 128', '"num_mel_bins": 80'), "shapes"),
        (replace_text("preprocessor_config.json", "128", "80"), "feature_size 80 instead of 128"),
        (lambda root: (root / "flow" / "hift.pt").unlink(), "there is no file 'hift.pt'"),
        (lambda root: (root / "flow" / "flow.pt").unlink(), "there is no file 'flow.pt'"),
        (lambda root: (root / "config.json").unlink(), "config.json"),
        (settings_file("a: [1"), "cannot be read as YAML"),
        (settings_file("- 1"), "holds a list"),
        (settings_file("a: 1"), "no settings of a flow decoder"),
    ],
)
def test_nothing_is_written_unless_all_is_understood(tmp_path, change, message):
    moss_repository(tmp_path / "released")
    change(tmp_path / "released")
    with pytest.raises(ValueError, match=message):
        moss.convert(str(tmp_path / "released"), str(tmp_path / "codec"), **HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


class Dangerous:
    def __reduce__(self):
        return print, ("code of a checkpoint was executed",)


def test_code_in_a_checkpoint_is_never_executed(tmp_path, capfd):
    moss_repository(tmp_path / "released")
    for name in ("flow.pt", "hift.pt", "campplus_cn_common.bin"):
        path = tmp_path / "released" / "flow" / name
        original = path.readlink()
        rewrite(path, lambda path: torch.save({"x": Dangerous()}, path))
        with pytest.raises(ValueError, match="weights_only=True"):
            moss.convert(str(tmp_path / "released"), str(tmp_path / "codec"), **HEADS)
        path.unlink()
        path.symlink_to(original)
    assert "executed" not in capfd.readouterr().out


def test_yaml_is_data(tmp_path, capfd):
    path = tmp_path / "config.yaml"
    path.write_text(
        settings() + "evil: !apply:os.system ['echo executed']\nother: !!python/object/apply:os.getcwd []\n"
    )
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        read_flow_yaml(path)
    path.write_text(settings() + "evil: !apply:os.system ['echo executed']\nloop: !ref <loop>\nopen: !ref <a> + 1\n")
    values = read_flow_yaml(path)
    assert "executed" not in capfd.readouterr().out
    assert values["flow.spk_embed_dim"] == 192 and values["flow.input_frame_rate"] == 12.5
    assert values["flow.decoder.estimator.static_chunk_size"] == 20
    assert not {"loop", "open"} & values.keys()


def test_yaml_of_the_released_sizes(tmp_path):
    (tmp_path / "config.yaml").write_text(settings(vocab=20480))
    assert len(check_flow_yaml(read_flow_yaml(tmp_path / "config.yaml"), MossSpeechCodecConfig())) == 10


def test_command_line(tmp_path, capsys):
    surplus = moss_repository(tmp_path / "released")
    arguments = ["--checkpoint", str(tmp_path / "released"), "--output_dir", str(tmp_path / "codec")]
    # the recorded flow has one head of 64 channels in this reading
    moss.main([*arguments, "--flow", "flow-chunk-25.pt", "--without_speaker_encoder"])
    text = capsys.readouterr().out
    assert text.startswith(f"{len(surplus)} tensors outside the encoder") and all(key in text for key in surplus)
    assert load_codec(tmp_path / "codec").config.flow_config.chunk_size == 25
    with pytest.raises(SystemExit):
        moss.main(["--help"])
    text = capsys.readouterr().out
    assert "flow-chunk-25.pt" in text and "--without_speaker_encoder" in text
    with pytest.raises(ValueError, match="already"):
        moss.main(arguments)


# CosyVoice 2


def cosyvoice2_repository(folder):
    _, flow, hift, speaker = released_parts()
    folder.mkdir()
    flow = flow | {"encoder.up_layer.conv.weight": flow["encoder.up_layer.conv.weight"][..., :5].contiguous()}
    torch.save(flow, folder / "flow.pt")
    torch.save({f"generator.{key}": value for key, value in hift.items()}, folder / "hift.pt")
    torch.save(speaker, folder / "campplus.pt")
    (folder / "campplus.onnx").write_bytes(b"onnx")
    (folder / "cosyvoice2.yaml").write_text(settings(rate=25, ratio=2, chunk=25))


def test_cosyvoice2(tmp_path):
    cosyvoice2_repository(tmp_path / "released")
    cosyvoice2.convert(str(tmp_path / "released"), str(tmp_path / "codec"), **HEADS)
    codec = load_codec(tmp_path / "codec")
    assert codec.encoder is None and codec.config.encoder_config is None
    assert (codec.codebook_size, codec.frame_rate, codec.hop_length) == (100, 25.0, 960)
    flow = codec.config.flow_config
    assert (flow.chunk_size, flow.training_time_schedule, flow.streaming_probability) == (25, "uniform", 0.5)
    voice = codec.make_voice(recording(0.5), 16000, prompt_codes=torch.arange(20))
    assert voice.num_codes == 12 and voice.prompt_mel.shape == (80, 24)
    voice.save(tmp_path / "voice.safetensors")
    voice = MossSpeechVoice.load(tmp_path / "voice.safetensors")
    codes = torch.arange(30)[None]
    assert codec.decode(codes, voice=voice).shape == (1, 1, 960 * 30)
    session = codec.streaming_decoder(voice, chunk_size=5)
    streamed = torch.cat([session.step(piece) for piece in codes[0].split(8)] + [session.finish()])
    whole = codec.decode(codes, voice=voice, streaming=True, chunk_size=5)[0, 0]
    assert (streamed - whole).square().mean().sqrt() < 1e-3


def test_cosyvoice2_refused(tmp_path):
    cosyvoice2_repository(tmp_path / "released")
    (tmp_path / "released" / "campplus.pt").unlink()
    with pytest.raises(ValueError, match="ONNX export"):
        cosyvoice2.convert(str(tmp_path / "released"), str(tmp_path / "codec"), **HEADS)
    replace_text("cosyvoice2.yaml", "token_frame_rate: 25", "token_frame_rate: 50")(tmp_path / "released")
    arguments = ["--checkpoint", str(tmp_path / "released"), "--output_dir", str(tmp_path / "codec")]
    with pytest.raises(ValueError, match="token_frame_rate 50 instead of 25"):
        cosyvoice2.convert(arguments[1], arguments[3], without_speaker_encoder=True, **HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


# released sizes


def layout(name):
    content = json.loads((FIXTURES / "layouts" / f"{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape, *_ in content["keys"]}


def test_released_layouts():
    """Every released tensor has a place in the default codec, with its shape, and there is no other place."""
    from dualspeech.modeling.conversion import convert_flow_decoder_to_hf, convert_hift_to_hf, convert_whisper_vq_to_hf

    with torch.device("meta"):
        codec = MossSpeechCodecModel(MossSpeechCodecConfig())
    encoder, left_out = convert_whisper_vq_to_hf.select_keys(layout("moss_codec_encoder"), RELEASED)
    parts = {
        "encoder": encoder,
        "flow": convert_flow_decoder_to_hf.convert_state(meta_state()),
        "vocoder": convert_hift_to_hf.convert_state(layout("moss_hift")),
        "speaker_encoder": layout("campplus_192"),
    }
    expected = {f"{part}.{key}": shape for part, state in parts.items() for key, shape in shapes(state).items()}
    assert not left_out and len(expected) == 249 + 1121 + 328 + 937
    assert shapes(codec.state_dict()) == expected


def test_released_cosyvoice2_layout():
    from dualspeech.modeling.conversion import convert_flow_decoder_to_hf

    converted = convert_flow_decoder_to_hf.convert_state(cosyvoice2_state())
    flow = convert_flow_decoder_to_hf.released_config(converted)
    with torch.device("meta"):
        codec = MossSpeechCodecModel(MossSpeechCodecConfig(encoder_config=None, flow_config=flow))
    assert shapes(codec.flow.state_dict()) == shapes(converted)
    assert (codec.codebook_size, codec.frame_rate, codec.hop_length) == (6561, 25.0, 960)
