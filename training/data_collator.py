"""Batches for training DualSpeechLM with a plain `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_dualspeech import DualSpeechConfig
from ..processing.processing_dualspeech import DualSpeechProcessor
from ..processing.sequence_builder import IGNORE_ID
from .packing import flat_examples, is_packed, pack_columns


@dataclass
class DualSpeechDataCollator:
    """Pads the rows of [`DualSpeechProcessor.build_examples`] to a batch, on the right, tasks mixed.

    Packs of rows ([`PackedDataset`]) become one sequence each: `input_ids`, `labels`, `prompt_mask`, `position_ids` and
    `seq_idx` `[packs, L]`; what belongs to a row (`acoustic_labels`, `speaker_embeds`, `task_type_ids`) has an entry per
    row, and there is no `attention_mask`.

    Columns that the model does not take are left out, so `remove_unused_columns=False` works too. The batch always has
    the same entries for one model, whatever tasks it holds.

    Args:
        processor ([`DualSpeechProcessor`]): gives the pad ids and sizes.
        max_length (`int`, *optional*): the longest accepted row in ids; a longer one is an error and is not cut.
        pad_to_multiple_of (`int`, *optional*): round lengths up, for tensor cores and fewer shapes to compile.
        flatten_packs (`bool`, *optional*, defaults to `False`): join the packs of a batch to one sequence, which flash
            attention needs.
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
    flatten_packs: bool = False
    model: InitVar[PreTrainedModel | DualSpeechConfig | None] = None

    def __post_init__(self, model):
        if model is not None:
            self.processor.check_model(model)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors as described in [`DualSpeechProcessor.__call__`] with `targets`.

        Raises:
            ValueError: a row without `labels`, or one longer than `max_length`.
        """
        rows = flat_examples(examples) if is_packed(examples) else examples
        for example in rows:
            if example.get("labels") is None:
                raise ValueError(
                    f"`examples` must have labels for training, got a row with {sorted(example)}; build them with `targets=`"
                )
        batch = self.processor.pad(
            rows, max_length=self.max_length, pad_to_multiple_of=self.pad_to_multiple_of, padding_side="right"
        )
        if is_packed(examples):
            del batch["attention_mask"]
            padding = {"input_ids": self.processor.pad_token_id, "labels": IGNORE_ID, "prompt_mask": 0}
            padding = {name: value for name, value in padding.items() if name in batch}
            batch.update(pack_columns(examples, padding, self.pad_to_multiple_of, self.flatten_packs))
        # The Trainer evaluates batches that have every label of `forward`, so those of the baselines have them too.
        batch.setdefault("acoustic_labels", torch.full((len(rows), 1), IGNORE_ID))
        return dict(batch)


__all__ = ["DualSpeechDataCollator"]
