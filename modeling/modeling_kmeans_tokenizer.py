"""Semantic tokenizer made of a self-supervised speech encoder and k-means (HuBERT units)."""

import copy

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from ..configuration.configuration_dual_tokenizer import KMeansTokenizerConfig
from .audio_parts import (
    AudioCodes,
    check_at_least,
    check_waveforms,
    evaluating,
    length_mask,
    normalize_waveforms,
    placed_like,
    rows_by_length,
    samples_for_frames,
)
from .vector_quantization import keeping_float32


class KMeansTokenizerModel(PreTrainedModel):
    """Speech encoder + k-means: each frame becomes the index of the nearest centroid (the lowest one of equals).

    `centroids [codebook_size, hidden size]` is a buffer that stays in float32 when the model is loaded in, or cast to, a
    half type; `training/fit_kmeans.py` fills it. Satisfies `SemanticTokenizer`.

    Args:
        config (`KMeansTokenizerConfig`): the configuration.
        encoder (`PreTrainedModel`, *optional*): a pretrained encoder to use; one is built from the config otherwise.

    Example:

    ```python
    >>> encoder = AutoModel.from_pretrained("facebook/hubert-base-ls960")
    >>> tokenizer = KMeansTokenizerModel.from_encoder(encoder, codebook_size=500, layer=9)
    >>> fit_kmeans(tokenizer, batches)
    >>> codes = tokenizer.encode_waveform(waveforms, num_samples).codes  # [B, T] at 50 Hz
    ```
    """

    config: KMeansTokenizerConfig
    base_model_prefix = "kmeans_tokenizer"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["centroids"]

    def __init__(self, config: KMeansTokenizerConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if encoder is None:
            encoder = AutoModel.from_config(config.encoder_config)
        self.encoder = encoder
        config.encoder_config = encoder.config  # one object
        shape = (config.codebook_size, config.encoder_config.hidden_size)
        self.register_buffer("centroids", torch.empty(shape, dtype=torch.float32))
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: PreTrainedModel, **kwargs) -> "KMeansTokenizerModel":
        """A tokenizer around a pretrained encoder, with centroids still to be fitted; `kwargs` go to the config."""
        # a composite config resets the attention implementation of its parts: it gets a copy
        return cls(KMeansTokenizerConfig(encoder_config=copy.deepcopy(encoder.config), **kwargs), encoder=encoder)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, KMeansTokenizerModel):
            init.normal_(module.centroids, std=self.config.initializer_range)

    def _apply(self, fn, recurse=True):
        centroids = self.centroids
        super()._apply(fn, recurse)
        self.centroids = keeping_float32(fn)(centroids)
        return self

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def sampling_rate(self) -> int:
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        stride = 1
        for factor in self.config.encoder_config.conv_stride:
            stride *= factor
        return self.config.sampling_rate / stride

    def extract_features(self, waveforms: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vectors that are quantised.

        Rows of different lengths are run apart when the encoder normalises over time (`feat_extract_norm="group"`,
        the base models): only then does padding change nothing. Encoders with layer norms run as one masked batch.

        Args:
            waveforms (`torch.Tensor`): `[B, S]` float at `sampling_rate`, right-padded.
            num_samples (`torch.Tensor`, *optional*): `[B]`; all S samples when omitted.

        Returns:
            `(features [B, T, hidden size], mask [B, T] bool)`; features outside the mask are zero.

        Raises:
            ValueError: wrong shapes, NaN or infinite samples, or a row too short for one frame.
        """
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        check_at_least("waveforms", num_samples, samples_for_frames(self.config.encoder_config, 1))
        if self.config.do_normalize:
            waveforms = normalize_waveforms(waveforms, num_samples)
        waveforms = placed_like(self.encoder, waveforms)
        num_samples = num_samples.to(waveforms.device)
        lengths = self.encoder._get_feat_extract_output_lengths(num_samples).long()
        mask = length_mask(lengths)
        with evaluating(self):
            if getattr(self.config.encoder_config, "feat_extract_norm", None) == "layer":
                features = self._hidden_states(waveforms, length_mask(num_samples, waveforms.shape[1]).long())
                features = features[:, : mask.shape[1]]
            else:
                features = waveforms.new_zeros(*mask.shape, self.centroids.shape[1])
                for rows, length in rows_by_length(num_samples):
                    part = self._hidden_states(waveforms[rows, :length])
                    features[rows, : part.shape[1]] = part
        return features.masked_fill(~mask[..., None], 0), mask

    def _hidden_states(self, waveforms: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        layer = self.config.layer
        outputs = self.encoder(waveforms, attention_mask=attention_mask, output_hidden_states=layer >= 0)
        return outputs.last_hidden_state if layer < 0 else outputs.hidden_states[layer]

    def quantize(self, features: Tensor) -> Tensor:
        """Index of the nearest centroid: `[..., hidden size]` -> `[...]` long. Distances are computed in float32."""
        with maybe_autocast(features.device.type, enabled=False):
            centroids = self.centroids.float()
            # |x|^2 is the same for all centroids of a frame
            distances = centroids.square().sum(1) - 2 * features.float() @ centroids.T
        return distances.argmin(-1)

    def encode_waveform(self, waveforms: Tensor, num_samples: Tensor | None = None) -> AudioCodes:
        """Codes of waveforms; arguments and errors as [`~KMeansTokenizerModel.extract_features`].

        Returns:
            `AudioCodes`: codes `[B, T]`, mask `[B, T]`; T = frames of the encoder.
        """
        features, mask = self.extract_features(waveforms, num_samples)
        with evaluating(self):
            codes = self.quantize(features)
        return AudioCodes(codes=codes.masked_fill(~mask, 0), codes_mask=mask)

    def forward(self, input_values: Tensor, num_samples: Tensor | None = None) -> AudioCodes:
        """The same as [`~KMeansTokenizerModel.encode_waveform`]."""
        return self.encode_waveform(input_values, num_samples)


__all__ = ["KMeansTokenizerModel"]
