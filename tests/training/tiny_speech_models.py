"""Tiny random speech models in folders, for the steps of data preparation."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def wav2vec2_config(masked=False, **kwargs):
    """A model of about 30 000 parameters, 50 frames per second; `masked`: layer norms, so that padding is masked."""
    return Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer" if masked else "group",
        do_stable_layer_norm=masked,
        initializer_range=0.2,
        **kwargs,
    )


def ctc_checkpoint(folder, masked=False):
    """A random `Wav2Vec2ForCTC` over capital letters with its processor; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(wav2vec2_config(masked, vocab_size=len(vocabulary), pad_token_id=0))
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def wav2vec2_log_probs(folder, samples):
    """Log probabilities `[T, V]` of one recording, without any step, and the vocabulary."""
    model, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(audio=samples, sampling_rate=16000, return_tensors="pt")
    return model(inputs["input_values"]).logits[0].log_softmax(-1), processor.tokenizer.get_vocab()


def frame_classifier_checkpoint(folder, num_labels=2):
    """A random `Wav2Vec2ForAudioFrameClassification` with its feature extractor; returns the folder."""
    torch.manual_seed(0)
    Wav2Vec2ForAudioFrameClassification(wav2vec2_config(num_labels=num_labels)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)
