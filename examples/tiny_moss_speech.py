"""A tiny random MOSS-Speech checkpoint for the example scripts: language model, processor, codec, default voice.

    python examples/tiny_moss_speech.py outputs/tiny_moss_speech

Nothing is downloaded and nothing is trained: the model answers with noise, in codes that stand for noise. All sizes are
small but the rates, which are those of the release: 12.5 codes per second, speech at 16 kHz in and at 24 kHz out.
"""

import argparse
import string
from pathlib import Path

import numpy as np
import torch
from tiny_dualspeech import WORDS, tone_speech
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dualspeech import (
    MossSpeechCodecConfig,
    MossSpeechCodecModel,
    MossSpeechFeatureExtractor,
    MossSpeechProcessor,
    SplitLayerQwen3Config,
    SplitLayerQwen3ForCausalLM,
)

CODES, MEL_BINS, CODEC_BINS, SPEAKER_SIZE = 40, 80, 16, 24
# The tokens of Qwen3 that MOSS-Speech uses; the last one stands in the text channel while the audio channel speaks.
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<think>"]


def tiny_moss_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer with the tokens of a chat."""
    characters = ["\n", " ", *string.printable.strip()]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *characters, *CHAT_TOKENS])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=CHAT_TOKENS[1:],
    )


def tiny_moss_model(tokenizer, seed: int = 0, **kwargs) -> SplitLayerQwen3ForCausalLM:
    """A split-layer model of about 150 000 parameters: 2 shared layers, 1 in each branch."""
    torch.manual_seed(seed)
    ids = dict(zip(CHAT_TOKENS, tokenizer.convert_tokens_to_ids(CHAT_TOKENS), strict=True))
    config = SplitLayerQwen3Config(
        **{
            "vocab_size": len(tokenizer),
            "audio_vocab_size": CODES + 8,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_shared_layers": 2,
            "num_modality_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,  # so that what was said makes a difference
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "sosp_token_id": ids["<|object_ref_start|>"],
            "modality_pad_token_id": ids["<think>"],
            "eosp_token_id": CODES,
            "audio_pad_token_id": 7,
            **kwargs,
        }
    )
    model = SplitLayerQwen3ForCausalLM(config).eval()
    # Sampled, as released; noise would not end by itself.
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.95, max_new_tokens=40)
    return model


def tiny_moss_codec(seed: int = 0) -> MossSpeechCodecModel:
    """A codec with all four parts and random weights, whose codes follow the sound."""
    torch.manual_seed(seed)
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    config = MossSpeechCodecConfig(
        encoder_config={**encoder, "num_mel_bins": MEL_BINS, "quantize_vocab_size": CODES, "init_std": 0.2},
        flow_config={
            "vocab_size": CODES,
            "codebook_size": CODES,
            "num_mel_bins": CODEC_BINS,
            "speaker_embedding_size": SPEAKER_SIZE,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_upsampled_layers": 1,
            "estimator_channels": 16,
            "estimator_num_heads": 2,
            "estimator_head_dim": 8,
            "estimator_num_layers": 1,
            "estimator_num_mid_stages": 1,
            "num_timesteps": 3,
            "initializer_range": 0.2,
        },
        vocoder_config={
            "num_mel_bins": CODEC_BINS,
            "upsample_initial_channel": 16,
            "f0_hidden_size": 16,
            "initializer_range": 0.1,
        },
        speaker_config={
            "growth_rate": 4,
            "init_channels": 8,
            "head_channels": 4,
            "block_layers": (2, 2, 2),
            "embedding_size": SPEAKER_SIZE,
        },
    )
    codec = MossSpeechCodecModel(config).eval()
    with torch.no_grad():
        codec.vocoder.f0_predictor.classifier.weight.mul_(400)  # pitches of speech instead of 0 Hz
        # The codebook is taken from what the encoder makes of tones and noise: each code is used.
        words = ["one", "red", "two", "blue", "house", "tree"]
        tones = torch.from_numpy(np.concatenate([tone_speech(words, voice, rate=16000) for voice in (1, 2, 3)]))
        features = MossSpeechFeatureExtractor(feature_size=MEL_BINS)(tones.numpy(), sampling_rate=16000)
        vectors = codec.encoder(torch.as_tensor(np.asarray(features["input_features"]))).vectors[0]
        chosen = vectors[torch.linspace(0, len(vectors) - 1, CODES).long()]
        codec.encoder.codebook.weight.copy_(chosen)
        codec.encoder.ema_weight.copy_(chosen)
    return codec


def tiny_moss_processor(config: SplitLayerQwen3Config, tokenizer=None, codec=None) -> MossSpeechProcessor:
    """A processor around the parts above, with a default voice of 0.8 s."""
    processor = MossSpeechProcessor.from_config(
        config,
        tokenizer or tiny_moss_tokenizer(),
        MossSpeechFeatureExtractor(feature_size=MEL_BINS),
        codec or tiny_moss_codec(),
    )
    processor.voice = processor.make_voice((tone_speech(["tree", "two", "one"], voice=3), 24000)).trim(multiple_of=5)
    return processor


def tiny_moss_rows(kind: str, count: int, seed: int = 0) -> list[dict]:
    """`count` rows to learn from. `"chat"`: questions and answers in the four forms of fine-tuning, speech or text in and
    out; `"speech"`: documents of speech and text in turn, and of speech alone; `"text"`: documents of text."""
    draw = np.random.default_rng(seed)

    def chunk(words, spoken):
        if not spoken:
            return " ".join(words)
        audio = tone_speech(words, voice=int(draw.integers(1, 4)), rate=16000)
        return {"type": "audio", "audio": {"array": audio, "sampling_rate": 16000}}

    rows = []
    for i in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=4)]
        if kind == "chat":
            turns = [("user", words, i % 4 < 2), ("assistant", words[:2], i % 2 == 0)]
            row = {"messages": [{"role": role, "content": chunk(said, spoken)} for role, said, spoken in turns]}
        elif kind == "speech":
            row = {"chunks": [chunk(words[:2], True), *([chunk(words[2:], False)] if i % 2 else [])]}
        else:
            row = {"chunks": [chunk(words, False)]}
        rows.append(row)
    return rows


def make_moss_checkpoint(folder: str | Path) -> Path:
    """Save a tiny model and its processor, codec and voice included, to `folder`."""
    tokenizer = tiny_moss_tokenizer()
    model = tiny_moss_model(tokenizer)
    model.save_pretrained(folder)
    tiny_moss_processor(model.config, tokenizer).save_pretrained(folder)
    return Path(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="outputs/tiny_moss_speech")
    folder = make_moss_checkpoint(parser.parse_args(arguments).folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:9} {path.relative_to(folder)}")


if __name__ == "__main__":
    main()
