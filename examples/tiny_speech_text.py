"""What `build_speech_text_data.py` works with when nothing else is given: recordings, texts, a recogniser that understands
the speech of `tiny_letter_speech.py`, and a chat model by rules."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_letter_speech
import torch
from tiny_letter_speech import BLANK, PITCHES, RATE, SYMBOLS, VOICES, letter_speech
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from dualspeech.processing.audio import save_audio
from dualspeech.training.data_steps.chat_backends import ChatBackend

FRAME = 320  # samples per token
SENTENCES = [
    "one red house stands by the blue tree and two small birds sing in it",
    "we follow the river until it meets the quiet sea behind the hills",
    "a happy book keeper sees zebras in the zoo and counts them twice",
    "the old baker wakes up early and fills the street with the smell of bread",
]
QUESTIONS = [
    ("what stands by the tree", "A **red house** stands by the tree."),
    ("where does the river go", "It goes to the sea."),
    ("how do I sort a list", "`sorted(list, key=lambda x: x[1])`"),
]
CORPUS = [(sentence, score) for sentence, score in zip(SENTENCES, (4.2, 3.0, 1.5, 3.7), strict=True)]
# Speaks as `CommandBackend` wants it.
SPEAK_COMMAND = [sys.executable, str(Path(tiny_letter_speech.__file__).resolve()), "{text}", "{speaker}", "{output}"]


def make_recordings(folder: Path) -> Path:
    """Recordings of two sentences each, with a second between them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    silence = np.zeros(RATE, np.float32)
    for number, voice in enumerate(VOICES):
        first, second = (letter_speech(SENTENCES[2 * number + i], voice)[0] for i in range(2))
        save_audio(folder / f"{voice}.wav", np.concatenate([silence, first, silence, second, silence]), RATE)
    return folder


@dataclass
class RuleChat(ChatBackend):
    """A chat model of two rules: code is rejected, and what is no letter and no punctuation is left out."""

    def reply(self, messages: Sequence[Mapping[str, str]]) -> str:
        pair = json.loads(messages[1]["content"])
        return json.dumps({**{part: self._part(part, text) for part, text in pair.items()}, "quality": 4})

    def _part(self, part: str, text: str) -> dict:
        spoken = re.sub(r"[^\w\s.,?!']", "", text)
        state, said = ("PASSTHROUGH", "") if spoken == text else ("ADAPT", spoken)
        if "`" in text:
            state, said = "REJECT", "Code cannot be spoken."
        flags = {"simplified": False} | ({"corrected": False} if part == "answer" else {})
        return {"state": state, "text": said, "style": "neutral", **flags}


def make_recognizer(folder: Path, num_recordings: int = 100, seed: int = 0) -> str:
    """An `AutoModelForCTC` that hears the letters, saved with its processor; returns the folder.

    Its only layers are filters at the pitches of the letters, and a head that is fitted to recordings of known letters.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["<pad>", *SYMBOLS.replace(" ", "|"), "<unk>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=4 * len(SYMBOLS),
        num_hidden_layers=0,
        num_attention_heads=2,
        conv_dim=(4 * len(SYMBOLS),),
        conv_kernel=(480,),
        conv_stride=(FRAME,),
        feat_extract_norm="layer",
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=2,
        pad_token_id=BLANK,
    )
    model = Wav2Vec2ForCTC(config).eval()
    body, window = model.wav2vec2, np.hanning(480) / 480
    angles = 2 * np.pi * PITCHES[:, None] * np.arange(480) / RATE
    filters = np.concatenate([window * np.cos(angles + phase * np.pi / 2) for phase in range(4)])
    draw, states, labels = np.random.default_rng(seed), [], []
    with torch.no_grad():
        body.feature_extractor.conv_layers[0].conv.weight.copy_(torch.from_numpy(filters)[:, None])
        body.encoder.pos_conv_embed.conv.parametrizations.weight.original0.zero_()  # places do not matter
        for number in range(num_recordings):
            text = "".join(draw.choice(list(SYMBOLS), size=40))
            samples, tokens = letter_speech(text, list(VOICES)[number % len(VOICES)])
            shift = int(draw.integers(FRAME))
            samples, tokens = samples[shift:], tokens[shift:]
            inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
            states.append(body(**inputs).last_hidden_state[0])
            windows = np.lib.stride_tricks.sliding_window_view(tokens, 480)[::FRAME]
            # A tone counts from a quarter of the window on; gaps are longer than windows, and tones far longer.
            labels.append(torch.from_numpy(np.where((windows > 0).sum(1) >= 120, windows.max(1), BLANK)))
    states, labels = torch.cat(states), torch.cat(labels)
    optimizer = torch.optim.LBFGS(model.lm_head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model.lm_head(states), labels)
        value.backward()
        return value

    optimizer.step(loss)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)
