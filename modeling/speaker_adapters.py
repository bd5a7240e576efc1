"""Speaker encoders behind `SpeakerEncoder`: CAM++, the x-vector models of transformers, and vectors from a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .audio_features import centred_kaldi_fbank
from .audio_parts import (
    SpeakerEncoder,
    check_at_least,
    check_waveforms,
    evaluating,
    normalize_waveforms,
    placed_like,
    rows_by_length,
    samples_for_frames,
)


class CamPPlusSpeakerEncoder:
    """CAM++ on Kaldi filter banks with each utterance's own mean subtracted. Padding is masked inside the model."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.embedding_size: int = model.config.embedding_size
        self.sampling_rate: int = model.config.sampling_rate

    def embed(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """`waveforms [B, S]` float at `sampling_rate`, right-padded, with `num_samples [B]` -> `[B, E]`."""
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        # 3 frames of 25 ms every 10 ms: the fewest that have a standard deviation behind a stride of 2
        check_at_least("waveforms", num_samples, self.sampling_rate * 45 // 1000)
        waveforms, num_mel_bins = waveforms.to(self.model.device), self.model.config.num_mel_bins
        with evaluating(self.model):
            features, mask = centred_kaldi_fbank(waveforms, num_samples, num_mel_bins, self.sampling_rate)
            return self.model(placed_like(self.model, features), attention_mask=mask).embeddings


class XVectorSpeakerEncoder:
    """An `AutoModelForAudioXVector` that reads waveforms (WavLM, UniSpeech-SAT, wav2vec 2.0, Data2Vec).

    Rows of different lengths are run apart: the masked pooling of these models ignores the dilation of their TDNN and
    takes in frames of the padding.

    Args:
        model (`PreTrainedModel`): the encoder.
        do_normalize (`bool`): whether waveforms get zero mean and unit variance, as its feature extractor says.
    """

    def __init__(self, model: nn.Module, do_normalize: bool = True):
        self.model, self.do_normalize = model, do_normalize
        self.embedding_size: int = model.config.xvector_output_dim
        self.sampling_rate: int = getattr(model.config, "sampling_rate", 16000)  # the released ones have no such field

    def embed(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """`waveforms [B, S]` float at `sampling_rate`, right-padded, with `num_samples [B]` -> `[B, E]`."""
        config = self.model.config
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        context = sum(d * (k - 1) for k, d in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True))
        check_at_least("waveforms", num_samples, samples_for_frames(config, context + 2))
        if self.do_normalize:
            waveforms = normalize_waveforms(waveforms, num_samples)
        waveforms = placed_like(self.model, waveforms)
        embeddings = waveforms.new_empty(len(waveforms), self.embedding_size)
        with evaluating(self.model):
            for rows, length in rows_by_length(num_samples.to(waveforms.device)):
                embeddings[rows] = self.model(waveforms[rows, :length]).embeddings
        return embeddings


def as_speaker_encoder(model: nn.Module, do_normalize: bool = True) -> SpeakerEncoder:
    """The speaker encoder `model` behind the `SpeakerEncoder` protocol.

    Args:
        model (`PreTrainedModel`): CAM++, an x-vector model that reads waveforms, or one that satisfies the protocol.
        do_normalize (`bool`): for x-vector models, see [`XVectorSpeakerEncoder`].

    Raises:
        ValueError: none of these.
    """
    if model.config.model_type == "campplus":
        return CamPPlusSpeakerEncoder(model)
    if hasattr(model.config, "xvector_output_dim") and hasattr(model.config, "conv_stride"):
        return XVectorSpeakerEncoder(model, do_normalize)
    if isinstance(model, SpeakerEncoder):
        return model
    raise ValueError(
        f"`speaker_encoder` of type {model.config.model_type!r} is not supported: it must be a campplus, an "
        "`AutoModelForAudioXVector` that reads waveforms, or have the attributes and methods of `SpeakerEncoder`"
    )


class PrecomputedSpeakers:
    """Speaker vectors computed elsewhere, by name.

    Args:
        vectors (`dict[str, Tensor]`): a vector of one size `[E]` for each speaker.

    Example:

    ```python
    >>> speakers = PrecomputedSpeakers.from_file("speakers.safetensors")
    >>> speaker_embeds = speakers.embed(["anna", "ben"])  # [2, E] float32
    ```
    """

    def __init__(self, vectors: dict[str, Tensor]):
        if not vectors:
            raise ValueError("`vectors` must hold at least one speaker, got none")
        self.vectors = {name: torch.as_tensor(vector).float() for name, vector in vectors.items()}
        first = next(iter(self.vectors.values()))
        for name, vector in self.vectors.items():
            if vector.dim() != 1 or vector.shape != first.shape or not bool(vector.isfinite().all()):
                raise ValueError(
                    f"the vector of speaker {name!r} must be finite and of one size for all speakers, "
                    f"got {tuple(vector.shape)} beside {tuple(first.shape)}"
                )
        self.embedding_size = len(first)

    @classmethod
    def from_file(cls, path: str | Path) -> "PrecomputedSpeakers":
        """Read `.safetensors` or `.npz` (one vector `[E]` for each name) or `.npy` (`[E]`: one speaker, named like the
        file; `[n, E]`: speakers "0" to "n-1").

        Raises:
            ValueError: another kind of file, or vectors that do not fit together.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return cls(load_file(path))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return cls({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        if path.suffix == ".npy":
            array = torch.from_numpy(np.load(path, allow_pickle=False))
            return cls({path.stem: array} if array.dim() == 1 else {str(i): row for i, row in enumerate(array)})
        raise ValueError(f"`path` must end in .safetensors, .npz or .npy, got {str(path)!r}")

    @property
    def names(self) -> list[str]:
        return list(self.vectors)

    def embed(self, names: str | Sequence[str]) -> Tensor:
        """`[len(names), E]` float32 (one row for a single name)."""
        names = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in names if name not in self.vectors]
        if unknown:
            raise ValueError(
                f"unknown speakers {unknown}; this file has {self.names[:20]} ({len(self.vectors)} in all)"
            )
        return torch.stack([self.vectors[name] for name in names])


__all__ = ["CamPPlusSpeakerEncoder", "PrecomputedSpeakers", "XVectorSpeakerEncoder", "as_speaker_encoder"]
