"""Saving and loading a MOSS-Speech processor, also from a folder like the released one, and the any-to-any pipeline."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, WhisperFeatureExtractor, pipeline

from dualspeech import MossSpeechFeatureExtractor, MossSpeechProcessor
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.processing.moss_processor_cases import (
    ANSWER,
    USER,
    Rows,
    fitting_model,
    says,
    tiny_moss_processor,
)
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


def test_everything_is_saved_and_loaded(codec, tmp_path):
    original = tiny_moss_processor(codec, compat=True, sosp_token="<|object_ref_end|>")
    original.voice = original.make_voice((recording(1.0), 16000))
    original.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "audio_tokenizer",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "voice.safetensors",
    ]
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MossSpeechProcessor and loaded.to_dict() == original.to_dict()
    assert loaded.row_ids == original.row_ids and loaded.compat
    assert torch.equal(loaded.voice.prompt_mel, original.voice.prompt_mel)
    grid = Rows(original).codes(1, 2, 3)
    np.testing.assert_allclose(loaded.decode(grid).audio, original.decode(grid).audio, atol=1e-5)
    copied = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_allclose(copied.decode(grid).audio, original.decode(grid).audio, atol=1e-5)
    loaded.voice = None
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / "voice.safetensors").exists() and AutoProcessor.from_pretrained(tmp_path).voice is None


@pytest.fixture(scope="module")
def released_folder(tmp_path_factory):
    """A folder laid out like the released language model: no file of a processor, and remote code that must not run."""
    folder = tmp_path_factory.mktemp("released")
    processor = tiny_moss_processor()
    model = fitting_model(processor)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer("chat")
    tokenizer.chat_template = "{{ 'not the one that is used' }}"
    tokenizer.save_pretrained(folder)
    code = "raise RuntimeError('remote code was run')\n"
    for name in ("configuration", "modeling", "processing"):
        (folder / f"{name}_moss_speech.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    del config["audio_pad_token_id"]  # a constant of the released processor
    config["auto_map"] = {
        "AutoConfig": "configuration_moss_speech.MossSpeechConfig",
        "AutoModel": "modeling_moss_speech.MossSpeechForCausalLM",
        "AutoProcessor": "processing_moss_speech.MossSpeechProcessor",
    }
    config |= {"audio_vocab_size": 520, "architectures": ["MossSpeechForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("tokenizer_config", [{}, {"processor_class": "MossSpeechProcessor"}, "auto_map"])
def test_a_folder_laid_out_like_the_release(released_folder, codec, tmp_path, tokenizer_config):
    folder = tmp_path / "folder"
    shutil.copytree(released_folder, folder)
    if tokenizer_config == "auto_map":
        tokenizer_config = {"auto_map": {"AutoProcessor": "processing_moss_speech.MossSpeechProcessor"}}
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(saved | tokenizer_config))
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is MossSpeechProcessor and processor.audio_tokenizer is None and processor.voice is None
    ids = processor.row_ids
    assert (ids.vocab_size, ids.codebook_size, ids.eosp_token_id, ids.audio_pad_token_id) == (280, 27, 27, 512)
    assert (ids.sosp_token_id, ids.modality_pad_token_id, ids.turn_end_id) == (268, 270, 267)
    assert processor.feature_extractor.to_dict() == MossSpeechFeatureExtractor().to_dict()
    batch = processor([[USER, ANSWER, says(3)]], ["audio"])
    assert batch["input_ids"][0, -1].tolist() == [268, 512]
    processor.save_pretrained(tmp_path / "mine")
    again = AutoProcessor.from_pretrained(tmp_path / "mine")
    assert again.to_dict() == processor.to_dict() and again.row_ids == ids


def test_a_codec_is_given_beside_the_release(released_folder, codec):
    with pytest.raises(ValueError, match="`feature_size`: processor 128, audio tokenizer 80"):
        AutoProcessor.from_pretrained(released_folder, audio_tokenizer=tiny_moss_codec(), feature_size=128)
    big = tiny_moss_codec(encoder_config={"num_mel_bins": 128})
    processor = AutoProcessor.from_pretrained(released_folder, audio_tokenizer=big)
    assert processor.audio_tokenizer is big
    assert processor(audio=(recording(0.3).numpy(), 16000))["input_ids"].shape[-1] == 2


def test_released_feature_extractor_file(released_folder, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(released_folder, folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    extractor = AutoProcessor.from_pretrained(folder).feature_extractor
    assert type(extractor) is MossSpeechFeatureExtractor and extractor.feature_size == 80


def test_without_a_configuration_the_defaults_are_those_of_the_release(tmp_path):
    tiny_tokenizer("chat").save_pretrained(tmp_path)
    processor = MossSpeechProcessor.from_pretrained(tmp_path)
    ids = processor.row_ids
    assert (ids.vocab_size, ids.codebook_size, ids.eosp_token_id, ids.audio_pad_token_id) == (
        151680,
        16384,
        16384,
        512,
    )
    given = MossSpeechProcessor.from_pretrained(tmp_path, compat=True, vocab_size=500)
    assert given.compat and given.row_ids.vocab_size == 500


@pytest.fixture(scope="module")
def pipe(codec, tmp_path_factory):
    processor = tiny_moss_processor(codec)
    folder = tmp_path_factory.mktemp("checkpoint")
    fitting_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return pipeline("any-to-any", model=str(folder))


def test_pipeline(pipe):
    chat = [USER]
    torch.manual_seed(0)
    (row,) = pipe(text=chat, max_new_tokens=6)
    assert row["input_text"] == chat and row["generated_text"][-1]["role"] == "assistant"
    inputs = pipe.processor(chat)
    torch.manual_seed(0)
    expected = pipe.processor.batch_decode(pipe.model.generate(**inputs, max_new_tokens=6), return_audio=False)
    assert row["generated_text"][-1]["content"] == (expected[0].text or "")
    (row,) = pipe(text=chat, max_new_tokens=6, return_full_text=False)
    assert isinstance(row["generated_text"], str)
    (row,) = pipe({"text": "", "audio": (recording(0.4).numpy(), 16000)}, max_new_tokens=3)
    assert isinstance(row["generated_text"], str)
    written = pipe(["hello", "there"], max_new_tokens=3)
    assert [row["input_text"] for row in written] == ["hello", "there"]


def test_pipeline_that_speaks(pipe):
    chat = [USER]
    (row,) = pipe(text=chat, output_modality="audio", generation_mode="audio", max_new_tokens=6)
    assert row["generated_audio"].dtype == np.float32 and row["generated_audio"].ndim == 1
    rows = pipe([[USER], [says(1, 2)]], output_modality="audio", generation_mode="audio", max_new_tokens=4)
    assert [len(row) for row in rows] == [1, 1]
    with pytest.raises(ValueError, match="generation_mode"):
        pipe(text=chat, generation_mode="audio", max_new_tokens=1)
