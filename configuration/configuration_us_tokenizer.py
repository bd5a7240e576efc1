"""Configurations of the understanding-driven speech tokenizer (USTokenizer)."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec

# Default geometries: the speech encoder, and the text model, of which only the width matters to a checkpoint.
WHISPER_MEDIUM = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
LLAMA_3_2_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}

# What WhisperConfig says about the encoder.
_ENCODER_FIELDS = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_layerdrop",
    "num_mel_bins",
    "max_source_positions",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "scale_embedding",
    "init_std",
)


def whisper_encoder_config(config: WhisperConfig) -> WhisperConfig:
    """The part of a Whisper configuration that describes its encoder; everything else as by default."""
    return WhisperConfig(**{name: getattr(config, name) for name in _ENCODER_FIELDS})


@strict
class UsTokenizerConfig(PreTrainedConfig):
    """
    Configuration of [`UsTokenizerModel`]: a Whisper encoder, a convolutional codec around one EMA codebook, and a
    reconstruction of the encoder's features (arXiv 2508.08961). Defaults are those of the released code, table 10 of
    the paper and its text, except `mask_padding`, `dead_code_threshold` and `min_seconds` (see [`~UsTokenizerConfig.official_parity`]).

    Args:
        encoder_config (`dict` or `WhisperConfig`, *optional*):
            The speech encoder; only the encoder half of it is built. Whisper-medium by default.
        hidden_size (`int`, *optional*, defaults to 1024):
            Channels of the convolutions. Must equal the encoder's `d_model`.
        code_dim (`int`, *optional*, defaults to 1024):
            Width of the codebook vectors.
        codebook_size (`int`, *optional*, defaults to 1024):
            Number of codes.
        num_blocks (`int`, *optional*, defaults to 2):
            Convolutional blocks on each side of the quantiser.
        num_residual_units (`int`, *optional*, defaults to 2):
            Residual units per block.
        dilations (`list[int]`, *optional*, defaults to (1, 1)):
            Dilation of the first convolution of each residual unit of a block.
        kernel_size (`int`, *optional*, defaults to 3):
            Kernel of the convolutions at the code rate; odd.
        downsample (`int`, *optional*, defaults to 2):
            Encoder frames per code.
        vq_decay (`float`, *optional*, defaults to 0.8):
            Share of the old statistics that one update of the codebook keeps.
        vq_eps (`float`, *optional*, defaults to 1e-5):
            Smoothing constant of the update.
        kmeans_init (`bool`, *optional*, defaults to `False`):
            Start the codebook with k-means on the first training batch instead of N(0, 1).
        kmeans_iterations (`int`, *optional*, defaults to 50):
            Iterations of that start.
        dead_code_threshold (`float`, *optional*, defaults to 1e-3):
            A code whose averaged count per update falls below this is restarted from a vector of the batch; with
            `vq_decay=0.8` that takes 24 to 31 updates without use. 0 switches it off, as in the released code.
        commitment_loss_weight (`float`, *optional*, defaults to 1.0):
            Alpha of the total loss.
        reconstruction_loss_weight (`float`, *optional*, defaults to 45.0):
            Gamma of the total loss (equation 1 is the reconstruction loss); 0 is the paper's ablation without it.
        mask_padding (`bool`, *optional*, defaults to `True`):
            Whether the frames behind a shorter item of a batch are cut off, so that a batch equals single items.
            `False`: as in the released code every item has as many frames as the longest.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Hz.
        hop_length (`int`, *optional*, defaults to 320):
            Samples per encoder frame (50 frames per second).
        min_seconds (`float`, *optional*, defaults to 0.1):
            Shorter audio is refused. The released code fills everything below one second with zeros and encodes them.
        max_seconds (`float`, *optional*, defaults to 30.0):
            Longer audio is refused; at most what the encoder's positions hold. The released code cuts it off.
    """

    model_type = "us_tokenizer"
    base_config_key = "us_tokenizer_config"
    keys_to_ignore_at_inference = ["commitment_loss", "reconstruction_loss", "perplexity"]
    sub_configs_defaults = {"encoder_config": WhisperConfig}
    # The base plan names layers of a plain decoder.
    base_model_fsdp_plan = {}

    encoder_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 1024
    code_dim: int = 1024
    codebook_size: int = 1024
    num_blocks: int = 2
    num_residual_units: int = 2
    dilations: list[int] | tuple[int, ...] = (1, 1)
    kernel_size: int = 3
    downsample: int = 2
    vq_decay: float | int = 0.8
    vq_eps: float | int = 1e-5
    kmeans_init: bool = False
    kmeans_iterations: int = 50
    dead_code_threshold: float | int = 1e-3
    commitment_loss_weight: float | int = 1.0
    reconstruction_loss_weight: float | int = 45.0
    mask_padding: bool = True
    sampling_rate: int = 16000
    hop_length: int = 320
    min_seconds: float | int = 0.1
    max_seconds: float | int = 30.0

    def __post_init__(self, **kwargs):
        if self.encoder_config is None:
            self.encoder_config = dict(WHISPER_MEDIUM)
        # A copy: a composite configuration sets the attention implementation of its parts, which would reach into
        # the model that the given configuration belongs to.
        self.encoder_config = copy.deepcopy(self.encoder_config)
        super().__post_init__(**kwargs)

    @classmethod
    def official_parity(cls, **kwargs) -> "UsTokenizerConfig":
        """The choices of the released code where our defaults differ: padding is not masked, dead codes stay, and audio
        has at least one second. `kwargs` override any field."""
        return cls(
            **{
                "mask_padding": False,
                "dead_code_threshold": 0.0,
                "kmeans_init": False,
                "min_seconds": 1.0,
                **kwargs,
            }
        )

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.sampling_rate / self.hop_length / self.downsample

    @property
    def min_samples(self) -> int:
        """Shortest accepted audio, in samples."""
        return round(self.min_seconds * self.sampling_rate)

    @property
    def max_samples(self) -> int:
        """Longest accepted audio, in samples."""
        return round(self.max_seconds * self.sampling_rate)

    def num_frames(self, num_samples):
        """Encoder frames of `num_samples` (an `int` or an integer tensor): floor(num_samples / hop_length)."""
        return num_samples // self.hop_length

    def num_codes(self, num_samples):
        """Codes of `num_samples` (an `int` or an integer tensor): ceil(frames / downsample)."""
        return -(-self.num_frames(num_samples) // self.downsample)

    def validate_geometry(self):
        """Sizes are positive and fit together."""
        for name in ("code_dim", "codebook_size", "num_blocks", "downsample", "hop_length", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; at least 1 is needed")
        if self.encoder_config.model_type != "whisper":
            raise ValueError(f"`encoder_config` is of type {self.encoder_config.model_type!r}; 'whisper' is accepted")
        if self.hidden_size != self.encoder_config.d_model:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, but the encoder's `d_model` is {self.encoder_config.d_model}"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` is {self.kernel_size}; it must be odd")
        if len(self.dilations) != self.num_residual_units or any(dilation < 1 for dilation in self.dilations):
            raise ValueError(
                f"`dilations` is {self.dilations}; {self.num_residual_units} positive numbers (`num_residual_units`) "
                "are needed"
            )

    def validate_quantizer(self):
        """The update of the codebook is a proper average."""
        if not 0 < self.vq_decay < 1:
            raise ValueError(f"`vq_decay` is {self.vq_decay}; it must lie between 0 and 1, both excluded")
        if self.vq_eps <= 0:
            raise ValueError(f"`vq_eps` is {self.vq_eps}; it must be positive")
        for name in ("dead_code_threshold", "commitment_loss_weight", "reconstruction_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must not be negative")

    def validate_lengths(self):
        """Accepted audio has at least one frame and fits the encoder's positions."""
        if not self.hop_length <= self.min_samples <= self.max_samples:
            raise ValueError(
                f"`min_seconds` is {self.min_seconds} and `max_seconds` is {self.max_seconds}; needed are "
                f"{self.hop_length / self.sampling_rate} (one frame) <= min_seconds <= max_seconds"
            )
        positions = self.encoder_config.max_source_positions
        if self.max_samples > positions * self.hop_length:
            raise ValueError(
                f"`max_seconds` is {self.max_seconds}; the encoder's {positions} positions hold "
                f"{positions * self.hop_length / self.sampling_rate} seconds"
            )


@strict
class UsTokenizerForUnderstandingConfig(PreTrainedConfig):
    """
    Configuration of [`UsTokenizerForUnderstanding`]: a USTokenizer, an adapter, and the frozen text model that reads
    the quantised speech in training.

    Args:
        us_tokenizer_config (`dict` or `UsTokenizerConfig`, *optional*):
            The tokenizer.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The text model. Nothing is built from it: its `hidden_size` is the width of the adapter's output. The
            paper's Llama-3.2-1B (2048) by default.
        understanding_loss_weight (`float`, *optional*, defaults to 5.0):
            Beta of the total loss; 0 is the paper's ablation without understanding loss.
        freeze_encoder (`bool`, *optional*, defaults to `True`):
            Whether the Whisper encoder stays as it is (as in the paper).
        speech_placeholder_id (`int`, *optional*, defaults to -1):
            The value of `input_ids` at positions that take a speech vector; one that no text uses. Negative values
            are fine, as the id is never looked up.
        text_model_name_or_path (`str`, *optional*):
            Where `load_text_model()` finds the text model.
    """

    model_type = "us_tokenizer_for_understanding"
    keys_to_ignore_at_inference = [
        "commitment_loss",
        "reconstruction_loss",
        "understanding_loss",
        "perplexity",
        "codes",
        "codes_mask",
    ]
    sub_configs_defaults = {
        "us_tokenizer_config": UsTokenizerConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    base_model_fsdp_plan = {}

    us_tokenizer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    understanding_loss_weight: float | int = 5.0
    freeze_encoder: bool = True
    speech_placeholder_id: int = -1
    text_model_name_or_path: str | None = None

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = dict(LLAMA_3_2_1B)
        self.us_tokenizer_config, self.text_config = copy.deepcopy((self.us_tokenizer_config, self.text_config))
        super().__post_init__(**kwargs)

    def validate_understanding(self):
        """The loss weight is not negative."""
        if self.understanding_loss_weight < 0:
            raise ValueError(
                f"`understanding_loss_weight` is {self.understanding_loss_weight}; it must not be negative"
            )


__all__ = ["UsTokenizerConfig", "UsTokenizerForUnderstandingConfig", "whisper_encoder_config"]
