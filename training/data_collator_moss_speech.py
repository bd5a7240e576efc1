"""Batches for training SplitLayerQwen3 with a plain `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from ..processing.processing_moss_speech import MossSpeechProcessor


@dataclass
class MossSpeechDataCollator:
    """Pads examples of [`MossSpeechProcessor.build_examples`] or `build_documents` to a batch, on the right.

    Columns that the model does not take are left out, so `remove_unused_columns=False` works too.

    Args:
        processor ([`MossSpeechProcessor`]): gives the ids of the padding.
        max_length (`int`, *optional*): the longest accepted example in rows; a longer one is an error and is not cut.
        pad_to_multiple_of (`int`, *optional*): round lengths up, for tensor cores and fewer shapes to compile.
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
    model: InitVar[PreTrainedModel | SplitLayerQwen3Config | None] = None

    def __post_init__(self, model):
        if model is not None:
            self.processor.check_model(model)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` int64 `[B, L, 2]`, `attention_mask` int64 `[B, L]`, `labels` int64 `[B, L]` (flat ids, -100).

        Raises:
            ValueError: an example without `labels`, or one longer than `max_length`.
        """
        for number, example in enumerate(examples):
            if example.get("labels") is None:
                raise ValueError(
                    f"example {number} must have labels for training, it has {sorted(example)}; make examples with "
                    "`build_examples` or `build_documents`"
                )
        batch = self.processor.pad(
            examples, max_length=self.max_length, pad_to_multiple_of=self.pad_to_multiple_of, padding_side="right"
        )
        return dict(batch)


__all__ = ["MossSpeechDataCollator"]
