"""Configuration of WavTokenizer, the single-codebook acoustic codec."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class WavTokenizerConfig(PreTrainedConfig):
    model_type = "dualspeech_wavtokenizer"

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
    initializer_range: float | int = 0.02


__all__ = ["WavTokenizerConfig"]
