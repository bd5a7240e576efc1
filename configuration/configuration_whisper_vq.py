"""Configuration of the speech-to-code encoder of MOSS-Speech and of GLM-4-Voice."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class WhisperVqConfig(PreTrainedConfig):
    """
    Configuration of [`WhisperVqModel`]. The defaults are the encoder of MOSS-Speech's codec;
    `attention_mode="block"` is the tokenizer of GLM-4-Voice. Fields have their released names, except that the released
    `config.json` files say `encoder_layers=32` and build the first `quantize_position=16` only: here `encoder_layers`
    counts the layers that exist.

    Args:
        d_model (`int`): width of the encoder.
        encoder_layers (`int`): number of layers, all of them in front of the quantiser.
        encoder_attention_heads (`int`): heads of each layer.
        encoder_ffn_dim (`int`): inner width of the feed-forward parts.
        num_mel_bins (`int`): bins of the log-mel features, which have 100 frames per second.
        max_source_positions (`int`): learned positions, 50 per second. Audio is cut into pieces of this length.
        attention_mode (`str`): `"causal"`, or `"block"`: a frame also sees the later ones of its own block.
        quantize_causal_block_size (`int`): frames (of 20 ms) in a block of the mode `"block"`.
        pooling_kernel_size (`int`): frames of 20 ms that are averaged to one code.
        pooling_type (`str`): only `"avg"`.
        quantize_vocab_size (`int`): number of codes.
        quantize_ema_decay (`float`): decay of the moving averages behind the codebook.
        quantize_restart_interval (`int`): codebook updates after which unused codes should be restarted. It is kept for
            training loops; the model counts nothing.
        quantize_commit_coefficient, quantize_loss_scale (`float`): factors of the commitment loss in the training loss.
        activation_function (`str`): activation inside the layers; both convolutions have the exact GELU.
        dropout, attention_dropout, activation_dropout (`float`): dropout of the layers, in training only.
        init_std (`float`): standard deviation of fresh weights.
    """

    model_type = "whisper_vq"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "num_key_value_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
        "codebook_size": "quantize_vocab_size",
    }
    sampling_rate = 16000  # Hz, of the waveforms; with the shift of the features no choice of a checkpoint
    mel_hop_length = 160  # samples per frame of the features

    d_model: int = 1280
    encoder_layers: int = 16
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    attention_mode: str = "causal"
    quantize_causal_block_size: int = 200
    pooling_kernel_size: int = 4
    pooling_type: str = "avg"
    quantize_vocab_size: int = 16384
    quantize_ema_decay: float | int = 0.99
    quantize_restart_interval: int = 100
    quantize_commit_coefficient: float | int = 0.25
    quantize_loss_scale: float | int = 10.0
    activation_function: str = "gelu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    init_std: float | int = 0.02

    @property
    def frames_per_code(self) -> int:
        """Mel frames (10 ms) per code: the second convolution halves their number, then comes the average."""
        return 2 * self.pooling_kernel_size

    @property
    def samples_per_code(self) -> int:
        """Samples at 16 kHz per code."""
        return self.mel_hop_length * self.frames_per_code

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.sampling_rate / self.samples_per_code

    @property
    def max_frames(self) -> int:
        """Mel frames of a whole piece."""
        return 2 * self.max_source_positions

    @property
    def max_samples(self) -> int:
        """Samples of a whole piece; longer audio is cut into such pieces, which know nothing of each other."""
        return self.mel_hop_length * self.max_frames

    def validate_sizes(self):
        names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
        names += ("max_source_positions", "quantize_causal_block_size", "pooling_kernel_size", "quantize_vocab_size")
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(
                f"d_model must be a multiple of encoder_attention_heads, got {self.d_model} and "
                f"{self.encoder_attention_heads}"
            )
        if self.max_source_positions % self.pooling_kernel_size:
            raise ValueError(
                f"max_source_positions must be a multiple of pooling_kernel_size, got {self.max_source_positions} and "
                f"{self.pooling_kernel_size}"
            )

    def validate_choices(self):
        if self.attention_mode not in ("causal", "block"):
            raise ValueError(f"attention_mode must be 'causal' or 'block', got {self.attention_mode!r}")
        if self.pooling_type != "avg":
            raise ValueError(f"pooling_type must be 'avg', got {self.pooling_type!r}")
        if not 0 < self.quantize_ema_decay < 1:
            raise ValueError(f"quantize_ema_decay must be in (0, 1), got {self.quantize_ema_decay}")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


__all__ = ["WhisperVqConfig"]
