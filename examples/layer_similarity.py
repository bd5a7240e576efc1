"""How similar a model's hidden states of texts and of their spoken forms are, layer by layer (MOSS-Speech, figure 2).

    python examples/layer_similarity.py
    python examples/layer_similarity.py --checkpoint my-model --samples samples.json --output_dir outputs/similarity
    python examples/layer_similarity.py --checkpoint plain-model --samples samples.json --speech_offset 151936

Runs on a split model (trunk, then the text branch for texts and the audio branch for speech, or other branches with
`--text_branch` and `--speech_branch`) and on any other causal language model whose vocabulary holds speech codes from
`--speech_offset` on. Without `--checkpoint` a tiny random model and tones are used. `samples.json` is a list of

    {"text": "what is said", "speech": "recording.wav", "spans": [{"text": [0, 2], "speech": [0, 5]}, ...]}

`text` may also be a list of token ids and `speech` a list of codes; the codes of recordings are made by the codec of the
checkpoint. `spans` are pairs of token and code positions, ends exclusive, for example from a forced aligner; without them
text and speech are cut into `--num_spans` parts of even length. Written are heat maps of each sample with the DTW paths,
the score over the layers (of each sample and their average), and all numbers as JSON.
"""

import argparse
import json
from pathlib import Path

import torch
from tiny_dualspeech import tone_speech
from tiny_moss_speech import make_moss_checkpoint
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from dualspeech.modeling.layer_similarity import (
    BRANCHES,
    LayerSimilarity,
    LayerStates,
    average_scores,
    has_branches,
    layer_similarity,
    plot_heat_maps,
    plot_scores,
    proportional_spans,
    sequence_states,
    split_model,
)
from dualspeech.processing.audio import save_audio


def tiny_samples(folder: Path) -> list[dict]:
    """Words as tones of 0.3 s, saved as recordings, one span per word."""
    samples = []
    for number, words in enumerate((["one", "red", "house"], ["two", "blue", "tree"], ["house", "one"])):
        path = folder / f"speech-{number}.wav"
        save_audio(path, tone_speech(words, rate=16000), 16000)
        spans, position, num_codes = (
            [],
            0,
            -(-len(words) * 4800 // 1280),
        )  # a token is a character, a code 1280 samples
        for i, word in enumerate(words):
            ends = [i * num_codes // len(words), (i + 1) * num_codes // len(words)]
            spans.append({"text": [position, position + len(word)], "speech": ends})
            position += len(word) + 1
        samples.append({"text": " ".join(words), "speech": str(path), "spans": spans})
    return samples


class Reader:
    """Makes the two sequences of a sample and takes their hidden states."""

    def __init__(self, model, checkpoint: str | Path, options: argparse.Namespace):
        self.model, self.checkpoint, self.options = model, checkpoint, options
        self.is_split = split_model(model) is not None
        if self.is_split == (options.speech_offset is not None):
            raise ValueError(
                "`--speech_offset` is the id of code 0 in the vocabulary of a model without rows: needed there, and not "
                f"accepted for others; got {options.speech_offset} for {type(model).__name__}"
            )
        self._processor = None

    @property
    def processor(self):
        """Tokenizer and codec of the checkpoint; of a plain model the tokenizer. Loaded when a sample needs it."""
        if self._processor is None:
            kind = AutoProcessor if self.is_split else AutoTokenizer
            self._processor = kind.from_pretrained(self.checkpoint)
            if self.is_split:
                self._processor.load_audio_tokenizer(device=self.options.device)
        return self._processor

    def text_ids(self, text: str | list[int]) -> list[int]:
        if not isinstance(text, str):
            return text
        tokenizer = self.processor.tokenizer if self.is_split else self.processor
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def codes(self, speech: str | list[int]) -> list[int]:
        if not isinstance(speech, str):
            return speech
        if not self.is_split:
            raise ValueError(f"the speech of a model without a codec must be a list of codes, got {speech!r}")
        return self.processor.encode_audio([speech], resample=True)[0].tolist()

    def states(self, sample: dict) -> tuple[LayerStates, LayerStates]:
        """Hidden states of the text tokens and of the codes; speech is framed by its start and end, as in training."""
        text, codes, config = self.text_ids(sample["text"]), self.codes(sample["speech"]), self.model.config
        if self.is_split:
            text_ids = [[token, config.audio_pad_token_id] for token in text]
            speech_ids = [[config.sosp_token_id, config.audio_pad_token_id]]
            speech_ids += [[config.modality_pad_token_id, code] for code in [*codes, config.eosp_token_id]]
        else:
            text_ids, speech_ids = text, [self.options.speech_offset + code for code in codes]
        branches = (self.options.text_branch, self.options.speech_branch) if has_branches(self.model) else (None, None)
        text_states, speech_states = (
            sequence_states(self.model, torch.tensor(ids), branch, include_embeddings=self.options.embeddings)
            for ids, branch in zip((text_ids, speech_ids), branches, strict=True)
        )
        return text_states, speech_states.select(slice(1, -1)) if self.is_split else speech_states

    def similarity(self, sample: dict) -> LayerSimilarity:
        text, speech = self.states(sample)
        spans = sample.get("spans")
        if spans is None:
            spans = proportional_spans(text.states.shape[1], speech.states.shape[1], self.options.num_spans)
        return layer_similarity(text, speech, spans)


def read_samples(path: str) -> list[dict]:
    """The samples of a JSON file."""
    samples = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(samples, list) or not samples:
        raise ValueError(f"`samples`: {path!r} must hold a list of samples that is not empty")
    for number, sample in enumerate(samples):
        if not isinstance(sample, dict) or not {"text", "speech"} <= set(sample) <= {"text", "speech", "spans"}:
            raise ValueError(
                f"sample {number} must have `text` and `speech`, and may have `spans`; got {sample!r:.200}"
            )
    return samples


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or Hub id; a tiny random split model by default")
    parser.add_argument("--samples", help="JSON file; tones by default")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/layer_similarity"))
    parser.add_argument("--text_branch", choices=BRANCHES, default="text", help="layers behind the trunk for texts")
    parser.add_argument(
        "--speech_branch", choices=BRANCHES, default="audio", help="layers behind the trunk for speech"
    )
    parser.add_argument("--speech_offset", type=int, help="id of code 0 in a plain model")
    parser.add_argument("--num_spans", type=int, help="parts per sample without spans; one per text token by default")
    parser.add_argument("--embeddings", action="store_true", help="also the token embeddings, in front of the layers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="of the model; states are compared in double precision")
    options = parser.parse_args(arguments)

    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or make_moss_checkpoint(folder / "checkpoint")
    samples = tiny_samples(folder) if options.samples is None else read_samples(options.samples)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=options.dtype).to(options.device)
    reader, results = Reader(model, checkpoint, options), []
    for number, sample in enumerate(samples):
        try:
            results.append(reader.similarity(sample))
        except ValueError as error:
            raise ValueError(f"sample {number}: {error}") from error
        plot_heat_maps(results[-1], folder / f"heat_maps_{number}.png")
    plot_scores(results, folder / "scores.png")
    mean, deviation = average_scores(results)
    summary = {
        "model": type(model).__name__,
        "model_type": model.config.model_type,
        "branches": {"text": options.text_branch, "speech": options.speech_branch} if has_branches(model) else None,
        "num_trunk_layers": getattr(model.config, "num_shared_layers", None),
        "layers": list(results[0].layers),
        "average": mean.tolist(),
        "standard_deviation": deviation.tolist(),
        "samples": [result.to_dict() for result in results],
    }
    (folder / "similarity.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(f"{'layer':12} {'score':>8} {'deviation':>9}")
    for row in zip(results[0].layers, mean.tolist(), deviation.tolist(), strict=True):
        print("{:12} {:8.3f} {:9.3f}".format(*row))
    return summary


if __name__ == "__main__":
    main()
