"""The Trainer of speaker encoders: accuracy over the trained speakers, equal error rate over pairs of recordings."""

import math

import numpy as np
from transformers import EvalPrediction, Trainer

from .codec_segments import DatasetEpochCallback
from .loss_parts import LossPartsMixin
from .speaker_segments import collate_speakers
from .trainer import LogBeforeSaving


def equal_error_rate(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """
    The error rate of speaker verification where false acceptances are as frequent as false rejections, over all pairs of
    different rows, by the cosine of their vectors. Between two thresholds it is interpolated.

    Args:
        embeddings: `[N, E]`. N * N numbers are held in memory.
        labels: `[N]`, the speaker of each row.

    Raises:
        ValueError: no pair of one speaker, or none of two speakers.
    """
    embeddings, labels = np.asarray(embeddings, dtype=np.float32), np.asarray(labels)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings = embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    first, second = np.triu_indices(len(labels), 1)
    scores, same = (embeddings @ embeddings.T)[first, second], labels[first] == labels[second]
    if not same.any() or same.all():
        raise ValueError(
            f"`labels` must give pairs of one speaker and pairs of two, got {int(same.sum())} and {int((~same).sum())}"
        )
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # pairs of one score are accepted together
    rejected = np.append(1.0, 1 - np.cumsum(same)[last] / same.sum())
    accepted = np.append(0.0, np.cumsum(~same)[last] / (~same).sum())
    gap = rejected - accepted  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


class SpeakerTrainer(LossPartsMixin, Trainer):
    """
    `transformers.Trainer` for [`SpeakerEncoderForTraining`], and

    - training entries also hold `accuracy` and `margin`;
    - evaluations hold `eval_equal_error_rate` over all pairs of their recordings, whose speakers need not be among the
      trained ones; `eval_loss` and `eval_accuracy` of those that are, and without such, neither;
    - crops are drawn anew in each epoch, and a resumed training goes on exactly.

    Raises:
        ValueError: batches of one row, which batch norms cannot be trained with, or no whole batch in the data.
    """

    logged_outputs = ("accuracy", "margin")

    def __init__(self, *args, **kwargs):
        kwargs = {"data_collator": collate_speakers, "compute_metrics": self._verification, **kwargs}
        super().__init__(*args, **kwargs)
        self.add_callback(DatasetEpochCallback())
        self.add_callback(LogBeforeSaving())
        if self.train_dataset is not None:
            self._check_batches(len(self.train_dataset))

    def _check_batches(self, rows: int) -> None:
        batch, processes = self.args.train_batch_size, self.args.world_size
        if self.args.dataloader_drop_last:
            smallest = batch if rows >= batch * processes else 0
        else:
            smallest = min(batch, math.ceil(rows / processes) % batch or batch)
        if smallest < 2:
            raise ValueError(
                f"`per_device_train_batch_size` {batch} gives batches of {smallest} of the {rows} rows (`dataloader_drop_last` "
                f"is {self.args.dataloader_drop_last}); batch norms need 2 rows at least"
            )

    @staticmethod
    def _verification(prediction: EvalPrediction) -> dict[str, float]:
        embeddings = prediction.predictions
        embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
        return {"equal_error_rate": equal_error_rate(embeddings, prediction.label_ids)}

    def evaluation_loop(self, *args, **kwargs):
        output = super().evaluation_loop(*args, **kwargs)
        speakers = len(self._plain_model().config.speakers)
        if output.label_ids is not None and not np.any(output.label_ids < speakers):
            # a mean over nothing
            output.metrics.pop(next((key for key in output.metrics if key.endswith("_loss")), None), None)
        return output


__all__ = ["SpeakerTrainer", "equal_error_rate"]
