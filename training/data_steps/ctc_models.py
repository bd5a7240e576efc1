"""Any `AutoModelForCTC` as a function from recordings to log probabilities of its tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCTC, AutoProcessor

from .model_step import load_model


class CtcModel:
    """
    A CTC model with its processor.

    Args:
        checkpoint: folder or Hub id of an `AutoModelForCTC` and its `AutoProcessor`.
        device, dtype: see [`ModelStep`].

    Attributes:
        sampling_rate: of the recordings that it takes, in Hz.
        blank_id: the token that stands for nothing; the pad token in all CTC models of transformers.
        tokenizer: of the processor.
    """

    def __init__(self, checkpoint: str, device: str | None = None, dtype: str = "auto"):
        self.model = load_model(AutoModelForCTC, checkpoint, device, dtype)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.feature_extractor = self.processor.feature_extractor
        self.tokenizer = self.processor.tokenizer
        self.sampling_rate = self.feature_extractor.sampling_rate
        self.blank_id = self.model.config.pad_token_id

    @torch.no_grad()
    def log_probs(self, recordings: Sequence[np.ndarray]) -> list[Tensor]:
        """
        Log probabilities float32 `[T, V]` of each recording `[S]` at `sampling_rate`, on the CPU.

        Recordings share a batch where the model is told what padding is and how many frames a recording has; otherwise
        they go through one by one, since padding would change them.

        Raises:
            ValueError: a recording that is shorter than one frame of the model.
        """
        frames_of = getattr(self.model, "_get_feat_extract_output_lengths", None)
        masked = getattr(self.feature_extractor, "return_attention_mask", False)
        if len(recordings) > 1 and not (frames_of and masked and self._reads_waveforms):
            return [self.log_probs([recording])[0] for recording in recordings]
        inputs = self.feature_extractor(
            list(recordings), sampling_rate=self.sampling_rate, padding=True, return_tensors="pt"
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        try:
            logits = self.model(**inputs).logits
        except RuntimeError as error:
            shortest = min(len(recording) for recording in recordings) / self.sampling_rate
            if "out of memory" in str(error) or shortest > 0.1:
                raise
            raise ValueError(f"a recording of {shortest:.3f} s is too short for the model ({error})") from error
        log_probs = logits.float().log_softmax(-1).cpu()
        if len(recordings) == 1:
            return [log_probs[0]]
        lengths = frames_of(inputs["attention_mask"].sum(-1)).tolist()
        return [row[:length] for row, length in zip(log_probs, lengths, strict=True)]

    @property
    def _reads_waveforms(self) -> bool:
        return self.feature_extractor.model_input_names[0] == "input_values"

    def transcribe(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """The most probable token of each frame, without repeats and blanks, as text."""
        texts = []
        dropped = {self.blank_id, *self.tokenizer.all_special_ids} - {self.delimiter_id}
        for log_probs in self.log_probs(recordings):
            # Not left to the tokenizer: some drop blanks before repeats when they skip special tokens.
            tokens = torch.unique_consecutive(log_probs.argmax(-1)).tolist()
            tokens = [token for token in tokens if token not in dropped]
            texts.append(self.tokenizer.decode(tokens, group_tokens=False).strip())
        return texts

    def tokens_of(self, word: str) -> list[int]:
        """The tokens of one word, in the case of letters that the model knows best; without those that it does not know."""
        unknown = {self.tokenizer.unk_token_id, self.delimiter_id, *self.tokenizer.all_special_ids, self.blank_id}
        candidates = []
        for spelled in dict.fromkeys([word, word.upper(), word.lower()]):
            ids = self.tokenizer(spelled, add_special_tokens=False)["input_ids"]
            known = [token for token in ids if token not in unknown]
            candidates.append((len(known) - len(ids), known))
        return max(candidates, key=lambda candidate: candidate[0])[1]

    @property
    def delimiter_id(self) -> int | None:
        """The token between words, if the model has one."""
        delimiter = getattr(self.tokenizer, "word_delimiter_token_id", None)
        return None if delimiter in (self.blank_id, self.tokenizer.unk_token_id) else delimiter


__all__ = ["CtcModel"]
