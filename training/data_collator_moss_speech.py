"""Batches for training SplitLayerQwen3 with a plain `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from ..processing.processing_moss_speech import MossSpeechProcessor
from .packing import IGNORED, flat_examples, is_packed, pack_columns


@dataclass
class MossSpeechDataCollator:
    """Pads examples of [`MossSpeechProcessor.build_examples`] or `build_documents` to a batch, on the right.

    Packs of examples ([`PackedDataset`]) become one sequence each: `input_ids` `[packs, L, 2]`, `labels`, `position_ids`
    and `seq_idx` `[packs, L]`, without `attention_mask`.

    Columns that the model does not take are left out, so `remove_unused_columns=False` works too.

    Args:
        processor ([`MossSpeechProcessor`]): gives the ids of the padding.
        max_length (`int`, *optional*): the longest accepted example in rows; a longer one is an error and is not cut.
        pad_to_multiple_of (`int`, *optional*): round lengths up, for tensor cores and fewer shapes to compile.
        flatten_packs (`bool`, *optional*, defaults to `False`): join the packs of a batch to one sequence, which flash
            attention needs.
        model ([`SplitLayerQwen3ForCausalLM`] or [`SplitLayerQwen3Config`], *optional*): checked at once against the
            processor (see [`MossSpeechProcessor.check_model`]) and not kept.

    Example:

    ```python
    >>> data = Dataset.from_list(processor.build_examples(conversations))
    >>> trainer = Trainer(model, train_dataset=data, data_collator=MossSpeechDataCollator(processor, model=model), ...)
    ```
    """

    processor: MossSpeechProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    flatten_packs: bool = False
    model: InitVar[PreTrainedModel | SplitLayerQwen3Config | None] = None

    def __post_init__(self, model):
        if model is not None:
            self.processor.check_model(model)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` int64 `[B, L, 2]`, `attention_mask` int64 `[B, L]`, `labels` int64 `[B, L]` (flat ids, -100).

        Raises:
            ValueError: an example without `labels`, or one longer than `max_length`.
        """
        rows = flat_examples(examples) if is_packed(examples) else examples
        for number, example in enumerate(rows):
            if example.get("labels") is None:
                raise ValueError(
                    f"example {number} must have labels for training, it has {sorted(example)}; make examples with "
                    "`build_examples` or `build_documents`"
                )
        if is_packed(examples):
            self._check_lengths(rows)
            padding = {"input_ids": list(self.processor.row_ids.padding), "labels": IGNORED}
            return pack_columns(examples, padding, self.pad_to_multiple_of, self.flatten_packs)
        batch = self.processor.pad(
            rows, max_length=self.max_length, pad_to_multiple_of=self.pad_to_multiple_of, padding_side="right"
        )
        return dict(batch)

    def _check_lengths(self, rows: Sequence[Mapping[str, Any]]) -> None:
        longest = max(len(row["input_ids"]) for row in rows)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(f"an example has {longest} rows; `max_length` is {self.max_length}, and nothing is cut")


__all__ = ["MossSpeechDataCollator"]
