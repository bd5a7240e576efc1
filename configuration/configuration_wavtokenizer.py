"""Configuration of WavTokenizer, the single-codebook acoustic codec."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class WavTokenizerConfig(PreTrainedConfig):
    """
    Configuration of [`WavTokenizerModel`]. The defaults are `WavTokenizer-large-unify-40token` (40 codes per second),
    the codec of DualSpeechLM; `upsampling_ratios=(8, 5, 4, 2)` is the geometry of the models with 75 codes per second.
    Fields have the names that transformers' own port of WavTokenizer uses.

    Args:
        sampling_rate (`int`): rate in Hz of the audio, in and out.
        audio_channels (`int`): channels of the audio; only 1 is supported.
        num_filters (`int`): channels of the first encoder convolution; every stage doubles them.
        hidden_size (`int`): size of the vectors that the encoder gives out.
        upsampling_ratios (`list[int]`): strides of the encoder in reverse order; their product is the hop length.
        num_residual_layers (`int`): residual units in front of each strided convolution.
        kernel_size, last_kernel_size, residual_kernel_size (`int`): kernels of the first, the last and the residual
            convolutions of the encoder.
        dilation_growth_rate (`int`): factor by which the dilation grows from one residual unit of a stage to the next.
        compress (`int`): factor by which a residual unit narrows inside.
        num_lstm_layers (`int`): layers of the LSTM at the end of the encoder.
        use_causal_conv (`bool`): pad the encoder convolutions on the left only; the released models do not.
        use_conv_shortcut (`bool`): convolution of width 1 in the shortcut of the residual units.
        pad_mode (`str`): padding of the encoder convolutions, a mode of `torch.nn.functional.pad`.
        norm_type (`str`): `"weight_norm"` or `"time_group_norm"` for the encoder convolutions.
        codebook_size (`int`): number of codes.
        codebook_dim (`int`): size of a codebook vector; equal to `hidden_size`, there is no projection.
        decoder_hidden_size (`int`): width of the decoder backbone.
        decoder_intermediate_size (`int`): inner width of its ConvNeXt blocks.
        decoder_num_layers (`int`): number of ConvNeXt blocks.
        adanorm_num_embeddings (`int`): conditioning ids (`bandwidth_id`) of the adaptive norms. The released recipe
            draws one at random in training and always uses 0 afterwards.
        decoder_attention_num_groups (`int`): groups of the group norms in front of the ConvNeXt blocks.
        norm_eps (`float`): epsilon of all norms of the decoder.
        decoder_dropout (`float`): dropout in the residual blocks of the decoder, in training only.
        vq_decay, vq_eps (`float`): decay and smoothing of the moving averages behind the codebook.
        kmeans_init (`bool`): start the codebook from k-means on the first training batch.
        kmeans_iterations (`int`): iterations of that k-means.
        dead_code_threshold (`float`): codes whose moving count falls below it are restarted; 0 turns that off.
        initializer_range (`float`): standard deviation of the truncated normal that initialises the decoder.
    """

    model_type = "dualspeech_wavtokenizer"
    attribute_map = {"num_hidden_layers": "decoder_num_layers", "intermediate_size": "decoder_intermediate_size"}

    sampling_rate: int = 24000
    audio_channels: int = 1
    num_filters: int = 32
    hidden_size: int = 512
    upsampling_ratios: list[int] | tuple[int, ...] = (6, 5, 5, 4)
    num_residual_layers: int = 1
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    compress: int = 2
    num_lstm_layers: int = 2
    use_causal_conv: bool = False
    use_conv_shortcut: bool = True
    pad_mode: str = "reflect"
    norm_type: str = "weight_norm"
    codebook_size: int = 4096
    codebook_dim: int = 512
    decoder_hidden_size: int = 768
    decoder_intermediate_size: int = 2304
    decoder_num_layers: int = 12
    adanorm_num_embeddings: int = 4
    decoder_attention_num_groups: int = 32
    norm_eps: float | int = 1e-6
    decoder_dropout: float | int = 0.1
    vq_decay: float | int = 0.99
    vq_eps: float | int = 1e-5
    kmeans_init: bool = True
    kmeans_iterations: int = 200
    dead_code_threshold: float | int = 2.0
    initializer_range: float | int = 0.02

    @property
    def hop_length(self) -> int:
        """Samples per code."""
        return math.prod(self.upsampling_ratios)

    @property
    def n_fft(self) -> int:
        """Samples of one frame of the inverse Fourier transform; the released models all use four hops."""
        return 4 * self.hop_length

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.sampling_rate / self.hop_length

    def validate_sizes(self):
        names = ("sampling_rate", "num_filters", "hidden_size", "num_residual_layers", "compress", "num_lstm_layers")
        names += ("codebook_size", "decoder_hidden_size", "decoder_intermediate_size", "decoder_num_layers")
        names += ("adanorm_num_embeddings", "decoder_attention_num_groups")
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.upsampling_ratios or min(self.upsampling_ratios) <= 0:
            raise ValueError(f"upsampling_ratios must hold positive strides, got {list(self.upsampling_ratios)}")
        if self.audio_channels != 1:
            raise ValueError(f"audio_channels must be 1, got {self.audio_channels}")
        if self.codebook_dim != self.hidden_size:
            raise ValueError(
                f"codebook_dim must equal hidden_size (there is no projection between them), "
                f"got {self.codebook_dim} and {self.hidden_size}"
            )
        if self.decoder_hidden_size % self.decoder_attention_num_groups:
            raise ValueError(
                f"decoder_hidden_size must be a multiple of decoder_attention_num_groups, "
                f"got {self.decoder_hidden_size} and {self.decoder_attention_num_groups}"
            )

    def validate_choices(self):
        if self.norm_type not in ("weight_norm", "time_group_norm"):
            raise ValueError(f"norm_type must be 'weight_norm' or 'time_group_norm', got {self.norm_type!r}")
        if self.pad_mode not in ("reflect", "constant", "replicate"):
            raise ValueError(f"pad_mode must be 'reflect', 'constant' or 'replicate', got {self.pad_mode!r}")
        if not 0 <= self.decoder_dropout < 1:
            raise ValueError(f"decoder_dropout must be in [0, 1), got {self.decoder_dropout}")
        if not 0 < self.vq_decay < 1:
            raise ValueError(f"vq_decay must be in (0, 1), got {self.vq_decay}")


__all__ = ["WavTokenizerConfig"]
