"""Batches for training DualSpeechLM with a plain `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_dualspeech import DualSpeechConfig
from ..processing.processing_dualspeech import DualSpeechProcessor


@dataclass
class DualSpeechDataCollator:
    """Pads the rows of [`DualSpeechProcessor.build_examples`] to a batch, on the right, tasks mixed.

    Columns that the model does not take are left out, so `remove_unused_columns=False` works too. The batch always has
    the same entries for one model, whatever tasks it holds.

    Args:
        processor ([`DualSpeechProcessor`]): gives the pad ids and sizes.
        max_length (`int`, *optional*): the longest accepted row in ids; a longer one is an error and is not cut.
        pad_to_multiple_of (`int`, *optional*): round lengths up, for tensor cores and fewer shapes to compile.
        model ([`DualSpeechForConditionalGeneration`] or [`DualSpeechConfig`], *optional*): checked at once against the
            processor (see [`DualSpeechProcessor.check_model`]) and not kept.

    Example:

    ```python
    >>> dataset = dataset.map(lambda row: processor.build_example(task="asr", audio=row["audio"], targets=row["text"]))
    >>> trainer = Trainer(model, train_dataset=dataset, data_collator=DualSpeechDataCollator(processor, model=model), ...)
    ```
    """

    processor: DualSpeechProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    model: InitVar[PreTrainedModel | DualSpeechConfig | None] = None

    def __post_init__(self, model):
        if model is not None:
            self.processor.check_model(model)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors as described in [`DualSpeechProcessor.__call__`] with `targets`.

        Raises:
            ValueError: a row without `labels`, or one longer than `max_length`.
        """
        for example in examples:
            if example.get("labels") is None:
                raise ValueError(
                    f"`examples` must have labels for training, got a row with {sorted(example)}; build them with `targets=`"
                )
        batch = self.processor.pad(
            examples, max_length=self.max_length, pad_to_multiple_of=self.pad_to_multiple_of, padding_side="right"
        )
        # The Trainer evaluates batches that have every label of `forward`, so those of the baselines have them too.
        batch.setdefault("acoustic_labels", torch.full((len(batch["labels"]), 1), -100))
        return dict(batch)


__all__ = ["DualSpeechDataCollator"]
