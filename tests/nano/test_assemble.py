"""Putting parts together: what loads through Auto classes, and checkpoints that are stored in half precision."""

import json

import assemble
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

from dualspeech import (
    DualSpeechConfig,
    DualSpeechForConditionalGeneration,
    DualSpeechProcessor,
    DualTokenizerModel,
    MossSpeechCodecModel,
    MossSpeechProcessor,
)
from dualspeech.training.dualspeech_variants import get_variant, variant_fields
from tests.modeling import tiny_audio_parts as tiny
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.modeling.us_tokenizer_cases import tiny_text_model, tiny_understanding
from tests.processing.moss_processor_cases import fitting_model
from tests.tiny import tiny_tokenizer, tone

US_TOKENIZER = {"encoder_config": {"num_mel_bins": 80, "max_source_positions": 100}, "max_seconds": 2.0}


def run(command, output, **options):
    """The command of the script; returns the output folder."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assemble.main([command, *arguments, "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of trained parts: all that the commands take."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    codec = tiny_moss_codec()
    parts = {
        "us_tokenizer": tiny_understanding(us_tokenizer=US_TOKENIZER),
        "codec": tiny.wavtokenizer(),
        "speaker_encoder": tiny.campplus(),
        "encoder": codec.encoder,
        "flow": codec.flow,
        "vocoder": codec.vocoder,
        "moss_speaker_encoder": codec.speaker_encoder,
        "text_model": tiny_text_model(vocab_size=400),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    tiny_tokenizer("chat").save_pretrained(folder / "chat_tokenizer")
    tiny_tokenizer().save_pretrained(folder / "text_model")
    soundfile.write(folder / "voice.wav", recording(2.0).numpy(), 16000)
    return folder


@pytest.fixture(scope="module")
def dual_tokenizer(folder):
    names = ("us_tokenizer", "codec", "speaker_encoder")
    return run("dual_tokenizer", folder / "dual_tokenizer", **{name: folder / name for name in names})


@pytest.fixture(scope="module")
def moss_codec(folder):
    names = {name: folder / name for name in ("encoder", "flow", "vocoder")}
    return run("moss_codec", folder / "moss_codec", speaker_encoder=folder / "moss_speaker_encoder", **names)


@pytest.fixture(scope="module")
def dual_checkpoint(folder, dual_tokenizer):
    """A DualSpeechLM with its processor as a training leaves it, and the same put together for publishing."""
    source = run("dualspeech_processor", folder / "dual", text_model=folder / "tokenizer", codec=dual_tokenizer)
    processor = AutoProcessor.from_pretrained(source)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    fields = variant_fields(get_variant("ustoken"), processor, **sizes)
    ids = processor.speech_token_ids
    text_config = tiny_text_model(vocab_size=len(processor.tokenizer)).config
    names = ("audio_start_token_id", "audio_end_token_id", "semantic_token_offset")
    mine = {name: getattr(ids, name, None) for name in names}
    mine = {name: value for name, value in mine.items() if value is not None}
    model = DualSpeechForConditionalGeneration(DualSpeechConfig(text_config=text_config, **fields, **mine))
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 0] = 70000.0  # beyond float16
    model.save_pretrained(source)
    return source, run("checkpoint", folder / "dual_published", model=source)


@pytest.fixture(scope="module")
def moss_checkpoint(folder, moss_codec):
    """The same of MOSS-Speech."""
    options = {"text_model": folder / "chat_tokenizer", "codec": moss_codec, "voice": folder / "voice.wav"}
    source = run("moss_processor", folder / "moss", **options)
    fitting_model(AutoProcessor.from_pretrained(source)).save_pretrained(source)
    return source, run("checkpoint", folder / "moss_published", model=source)


def waveforms():
    return {"input_values": torch.stack([recording(1.5, seed=s) for s in range(4)]), "num_samples": torch.tensor([24000] * 4)}  # fmt: skip


def same(first, second, tolerance):
    return (first - second).abs().max() <= tolerance * first.abs().max()


def test_dual_tokenizer(folder, dual_tokenizer):
    model = AutoModel.from_pretrained(dual_tokenizer)
    assert type(model) is DualTokenizerModel and not model.training
    for name, part in (("acoustic_codec", "codec"), ("speaker_encoder", "speaker_encoder")):
        whole = {key.partition(".")[2]: value for key, value in model.state_dict().items() if key.startswith(name)}
        # codec and speaker encoder may stand inside an adapter
        alone = AutoModel.from_pretrained(folder / part).state_dict()
        assert all(
            any(key.endswith(other) and torch.equal(whole[key], alone[other]) for key in whole) for other in alone
        )
    understanding = AutoModel.from_pretrained(folder / "us_tokenizer")
    given = waveforms()
    codes = model.encode(**given, outputs=("us_codes",)).us_codes
    assert len(codes.unique()) > 2
    alone = DualTokenizerModel.from_parts(understanding.us_tokenizer).eval().encode(**given)
    assert torch.equal(codes, alone.us_codes)


def test_dualspeech_processor(folder, dual_checkpoint):
    processor = AutoProcessor.from_pretrained(dual_checkpoint[0])
    assert type(processor) is DualSpeechProcessor and type(processor.audio_tokenizer) is DualTokenizerModel
    assert (processor.semantic_codebook_size, processor.acoustic_codebook_size) == (17, 64)
    assert processor.speaker_embedding_size == 12
    assert processor.feature_extractor.max_seconds == 2.0
    row = processor(task="asr", audio=tone(1.0), sampling_rate=16000)
    assert processor.tokenizer.decode(row["input_ids"][0]).count("<a_") > 10


def test_moss_codec(folder, moss_codec):
    model = AutoModel.from_pretrained(moss_codec)
    assert type(model) is MossSpeechCodecModel and not model.training
    original = tiny_moss_codec()
    config = model.config
    assert (config.prompt_n_fft, config.prompt_max_frequency) == (4 * original.vocoder.config.hop_length, 8000)
    assert not [name for name in load_file(moss_codec / "model.safetensors") if "parametrizations" in name]
    heard = recording(2.0)
    codes = torch.tensor([[3, 5, 20, 7, 9]])
    first, second = (part.decode(codes, voice=part.make_voice(heard, 16000), seed=0) for part in (model, original))
    assert same(first, second, 1e-3)


def test_moss_processor(folder, moss_checkpoint):
    processor = AutoProcessor.from_pretrained(moss_checkpoint[0])
    assert type(processor) is MossSpeechProcessor and type(processor.audio_tokenizer) is MossSpeechCodecModel
    tokenizer = AutoTokenizer.from_pretrained(folder / "chat_tokenizer")
    assert processor.vocab_size == len(tokenizer) and processor.codebook_size == 27
    encoder = processor.audio_tokenizer.config.encoder_config
    extractor = processor.feature_extractor
    assert (extractor.feature_size, extractor.sampling_rate) == (encoder.num_mel_bins, encoder.sampling_rate)
    assert extractor.samples_per_code == encoder.samples_per_code
    # 25 codes of two seconds, in whole chunks of the flow
    assert len(processor.voice.prompt_codes) % processor.audio_tokenizer.config.flow_config.chunk_size == 0
    assert 20 <= len(processor.voice.prompt_codes) <= 25


def floats(folder):
    """The data types of the floating tensors of all weights below a folder, by file and name."""
    return {
        (str(path.relative_to(folder)), name): tensor.dtype
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tensor.is_floating_point()
    }


@pytest.mark.parametrize("kind", ["dual", "moss"])
def test_a_checkpoint_is_stored_in_half_precision(kind, request):
    source, published = request.getfixturevalue(f"{kind}_checkpoint")
    assert sorted(p.relative_to(source) for p in source.rglob("*")) == sorted(p.relative_to(published) for p in published.rglob("*"))  # fmt: skip
    before, after = floats(source), floats(published)
    assert before.keys() == after.keys() and set(before.values()) == {torch.float32}
    exact = {key for key, dtype in after.items() if dtype == torch.float32}
    parts = ("quantizer.", "codebook", "ema_", "running_", "embed_tokens", "prompt_mel", "speaker_embeds")
    assert exact and all(any(part in name for part in parts) for _, name in exact)
    for part in ("quantizer.embed", "running_var") if kind == "dual" else ("codebook", "ema_count", "running_var"):
        assert any(part in name for _, name in exact), part
    # the value beyond float16 keeps one table of the first model as it is
    assert sum("embed_tokens" in name for _, name in exact) == (kind == "dual")
    sizes = [sum(path.stat().st_size for path in folder.rglob("model.safetensors")) for folder in (source, published)]
    assert sizes[1] < 0.75 * sizes[0]
    for path in source.rglob("*.safetensors"):
        with safe_open(path, "pt") as first, safe_open(published / path.relative_to(source), "pt") as second:
            assert first.metadata() == second.metadata() and set(first.keys()) == set(second.keys())
    assert not list(published.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["dual", "moss"])
def test_a_checkpoint_loads_and_computes_in_float32(kind, request):
    source, published = request.getfixturevalue(f"{kind}_checkpoint")
    assert json.loads((published / "config.json").read_text())["dtype"] == "float32"
    first, second = (AutoModelForMultimodalLM.from_pretrained(folder).eval() for folder in (source, published))
    processors = [AutoProcessor.from_pretrained(folder) for folder in (source, published)]
    for model in (second, processors[1].audio_tokenizer):
        kinds = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
        assert kinds == {torch.float32} and model.dtype == torch.float32
        assert not [name for name, tensor in model.state_dict().items() if tensor.isnan().any()]
    for name, tensor in first.state_dict().items():
        assert torch.allclose(tensor, second.state_dict()[name], rtol=1e-3, atol=1e-6), name
    audio = [(recording(1.0, seed=seed).numpy(), 16000) for seed in range(4)]
    if kind == "dual":
        rows = [processor(task=["asr"] * 4, audio=[samples for samples, _ in audio], sampling_rate=16000) for processor in processors]  # fmt: skip
        ids = [batch["input_ids"] for batch in rows]
        given = {"input_ids": ids[0], "attention_mask": rows[0]["attention_mask"]}
    else:
        chats = [[{"role": "user", "content": {"type": "audio", "audio": entry}}] for entry in audio]
        ids = [processor(chats, "audio")["input_ids"] for processor in processors]
        given = {"input_ids": ids[0]}
        voices = [processor.voice for processor in processors]
        assert torch.equal(voices[0].prompt_mel, voices[1].prompt_mel) and voices[1].prompt_mel.dtype == torch.float32
    assert ids[0].shape == ids[1].shape and (ids[0] == ids[1]).float().mean() > 0.97
    with torch.no_grad():
        logits = [model(**given, **({"task_type_ids": rows[0]["task_type_ids"]} if kind == "dual" else {})) for model in (first, second)]  # fmt: skip
    name = "logits" if "logits" in logits[0] else "text_logits"
    assert same(logits[0][name], logits[1][name], 0.01) and not torch.equal(logits[0][name], logits[1][name])


def test_codebooks_are_the_same(dual_checkpoint, moss_checkpoint):
    """Bit for bit; only what is heard is rounded a little otherwise."""
    for source, published in (dual_checkpoint, moss_checkpoint):
        first, second = (load_file(folder / "audio_tokenizer" / "model.safetensors") for folder in (source, published))
        names = [name for name in first if "quantizer" in name or "codebook" in name or "ema_" in name]
        assert names and all(torch.equal(first[name], second[name]) for name in names if "project" not in name)


def test_a_text_model_is_a_checkpoint_too(folder):
    published = run("checkpoint", folder / "text_published", model=folder / "text_model", max_new_tokens=7)
    first, second = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "text_model", published))
    assert second.dtype == torch.float32 and set(floats(published).values()) == {torch.float16}
    ids = torch.tensor([[1, 5, 9, 30]])
    assert same(first(ids).logits, second(ids).logits, 0.01)
    assert AutoTokenizer.from_pretrained(published)("a b")["input_ids"]
    assert (first.generation_config.max_new_tokens, second.generation_config.max_new_tokens) == (None, 7)


def test_weights_in_another_precision_are_refused(folder, tmp_path):
    tiny_text_model().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match=r"holds weights in torch[.]bfloat16; accepted is torch[.]float32"):
        run("checkpoint", tmp_path / "out", model=tmp_path / "half")
    assert not (tmp_path / "out").exists()
