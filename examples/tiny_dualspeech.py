"""Tiny parts for the example scripts: tokenizer, audio tokenizer, model, and rows of all eight tasks.

    python examples/tiny_dualspeech.py outputs/tiny_dualspeech     # saves a checkpoint of them

Nothing is downloaded and nothing is trained: the "speech" is a sequence of tones, one per word, and the audio tokenizer
has random weights, which still maps equal tones to equal codes. It is enough to see every call work.
"""

import argparse
import string
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dualspeech import (
    CamPPlusConfig,
    DualSpeechConfig,
    DualSpeechFeatureExtractor,
    DualSpeechForConditionalGeneration,
    DualSpeechProcessor,
    DualTokenizerConfig,
    DualTokenizerModel,
    KMeansTokenizerConfig,
)
from dualspeech.modeling.audio_features import log_mel_spectrogram
from dualspeech.processing.audio import resample_audio
from dualspeech.processing.tokenization_dualspeech import extend_tokenizer

WORDS = {"red": "rot", "blue": "blau", "one": "eins", "two": "zwei", "house": "haus", "tree": "baum"}
EMOTIONS = {"neutral": 0.15, "angry": 0.5}
VOICES = (1, 2, 3)  # number of harmonics
WORD_SECONDS = 0.3
SPEECH_CODES, ACOUSTIC_CODES, SPEAKER_SIZE = 32, 48, 16


def tone_speech(words: list[str], voice: int = 1, rate: int = 24000, emotion: str = "neutral") -> np.ndarray:
    """Mono float32 samples at `rate` Hz: one tone of 0.3 s per word, `voice` harmonics, loudness by emotion."""
    time = np.arange(round(WORD_SECONDS * rate)) / rate
    known = [*WORDS, *WORDS.values()]
    pitches = [150 * 2 ** (known.index(word) / 4) for word in words]
    tones = [sum(np.sin(2 * np.pi * f * h * time) / h for h in range(1, voice + 1)) for f in pitches]
    return (EMOTIONS[emotion] * np.concatenate(tones)).astype(np.float32)


def tiny_tokenizer(codebook_size: int | None = SPEECH_CODES) -> PreTrainedTokenizerFast:
    """A character tokenizer with the speech tokens, if there are codes."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, "\n", " ", *string.printable.strip()])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if codebook_size is not None:
        extend_tokenizer(tokenizer, codebook_size)
    return tokenizer


def tiny_audio_tokenizer(seed: int = 0, semantic: str = "us_tokenizer") -> DualTokenizerModel:
    """A dual tokenizer with all three parts and random weights; 0.2 to 3 seconds of audio. With `semantic="kmeans"`
    the speech codes are those of a HuBERT encoder with random centroids."""
    torch.manual_seed(seed)
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    us_tokenizer = {
        "model_type": "us_tokenizer",
        "encoder_config": {**encoder, "max_source_positions": 150},
        "hidden_size": 32,
        "code_dim": 16,
        "codebook_size": SPEECH_CODES,
        "min_seconds": 0.2,
        "max_seconds": 3.0,
        "kmeans_init": True,
    }
    hubert = {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    kmeans = KMeansTokenizerConfig(encoder_config=hubert, codebook_size=SPEECH_CODES)
    config = DualTokenizerConfig(
        semantic_config=kmeans if semantic == "kmeans" else us_tokenizer,
        codec_config={
            "model_type": "dualspeech_wavtokenizer",
            "num_filters": 4,
            "hidden_size": 24,
            "codebook_size": ACOUSTIC_CODES,
            "codebook_dim": 24,
            "decoder_hidden_size": 64,
            "decoder_intermediate_size": 96,
            "decoder_num_layers": 1,
        },
        speaker_config=CamPPlusConfig(
            embedding_size=SPEAKER_SIZE, growth_rate=4, init_channels=16, block_layers=(2, 2, 2)
        ),
    )
    model = DualTokenizerModel(config).train()
    # One training pass over the tones starts codebooks with k-means, so that different tones get different codes.
    words = [*WORDS, *WORDS.values()]
    speech = np.stack(
        [tone_speech([a, b], v) for a, b in zip(words, words[1:] + words[:1], strict=True) for v in VOICES]
    )
    low, high = (torch.from_numpy(resample_audio(speech, 24000, rate)) for rate in (16000, 24000))
    if semantic != "kmeans":
        tokenizer = model.semantic_tokenizer
        with torch.no_grad():
            tokenizer.encoder.conv2.weight.mul_(50)  # else the codes follow positions and not the sound
        features = log_mel_spectrogram(low, n_frames=2 * tokenizer.config.encoder_config.max_source_positions)
        tokenizer(features, torch.full((len(low),), low.shape[1]))
    model.acoustic_codec(high[:, None], update_codebook=True)
    return model.eval()


def tiny_model(tokenizer, seed: int = 0, **kwargs) -> DualSpeechForConditionalGeneration:
    """A model of about 200 000 parameters with random weights for the tokenizer above; `kwargs` are fields of its
    configuration, `acoustic_config` some of the fields of AcousticGPT or `None`."""
    torch.manual_seed(seed)
    acoustic = {
        "codebook_size": ACOUSTIC_CODES,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_condition_positions": 512,
        "max_target_positions": 256,
    }
    own = kwargs.pop("acoustic_config", {})
    config = DualSpeechConfig(
        **{
            "text_config": {
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            "acoustic_config": None if own is None else {**acoustic, **own},
            "audio_start_token_id": tokenizer.convert_tokens_to_ids("<audio>"),
            "audio_end_token_id": tokenizer.convert_tokens_to_ids("</audio>"),
            "semantic_token_offset": tokenizer.convert_tokens_to_ids("<a_0>"),
            "semantic_codebook_size": SPEECH_CODES,
            "speaker_embedding_size": SPEAKER_SIZE,
            **kwargs,
        }
    )
    return DualSpeechForConditionalGeneration(config)


def tiny_processor(tokenizer=None, audio_tokenizer=None) -> DualSpeechProcessor:
    """A processor around the parts above."""
    return DualSpeechProcessor(
        DualSpeechFeatureExtractor(min_seconds=0.2, max_seconds=3.0),
        tokenizer or tiny_tokenizer(),
        semantic_codebook_size=SPEECH_CODES,
        acoustic_codebook_size=ACOUSTIC_CODES,
        speaker_embedding_size=SPEAKER_SIZE,
        audio_tokenizer=audio_tokenizer or tiny_audio_tokenizer(),
    )


def tiny_rows(count: int, seed: int = 0) -> list[dict]:
    """`count` rows in the processor's arguments (`task`, inputs, `targets`), the eight tasks in turn."""
    draw = np.random.default_rng(seed)
    english = list(WORDS)

    def sentence():
        return [english[i] for i in draw.integers(len(english), size=2)]

    def spoken(words, voice=None, emotion="neutral"):
        voice = int(draw.choice(VOICES)) if voice is None else voice
        return {"array": tone_speech(words, voice, emotion=emotion), "sampling_rate": 24000}

    rows = []
    for i in range(count):
        task = ("asr", "s2tt", "ser", "sqa", "tts", "t2st", "vc", "sc")[i % 8]
        words = sentence()
        german = [WORDS[word] for word in words]
        languages = {"source_language": "English", "target_language": "German"}
        if task == "asr":
            row = {"audio": spoken(words), "targets": " ".join(words)}
        elif task == "s2tt":
            row = {"audio": spoken(words), **languages, "targets": " ".join(german)}
        elif task == "ser":
            emotion = str(draw.choice(list(EMOTIONS)))
            row = {"audio": spoken(words, emotion=emotion), "targets": emotion}
        elif task == "sqa":
            row = {"audio": spoken(words), "question": "What is the first word?", "targets": words[0]}
        elif task == "tts":
            row = {"text": " ".join(words), "targets": {"audio": spoken(words)}}
        elif task == "t2st":
            row = {"text": " ".join(words), **languages, "targets": {"audio": spoken(german)}}
        elif task == "vc":
            row = {"audio": spoken(words), "targets": {"audio": spoken(words)}}
        else:
            row = {"audio": spoken(words), "question": spoken(["one"]), "targets": {"audio": spoken([words[0]])}}
        rows.append({"task": task, **row})
    return rows


def make_dualspeech_checkpoint(folder: str | Path) -> Path:
    """Save a tiny model and its processor, audio tokenizer included, to `folder`."""
    processor = tiny_processor()
    model = tiny_model(processor.tokenizer)
    # Noise would not end by itself.
    model.generation_config.text = {"num_beams": 4, "max_tokens": 16}
    model.generation_config.speech = {"max_codes": 16}
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return Path(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="outputs/tiny_dualspeech")
    print(make_dualspeech_checkpoint(parser.parse_args(arguments).folder))


if __name__ == "__main__":
    main()
