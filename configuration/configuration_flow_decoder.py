"""Configuration of the flow-matching decoder that turns speech codes into a mel spectrogram."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# What CosyVoice 2 (arXiv 2412.10117) sets differently; see `FlowDecoderConfig.cosyvoice2`.
_COSYVOICE2 = {
    "vocab_size": 6561,
    "codebook_size": 6561,
    "upsample_ratio": 2,
    "chunk_size": 25,
    "streaming_probability": 0.5,
    "training_time_schedule": "uniform",
}


@strict
class FlowDecoderConfig(PreTrainedConfig):
    """
    Configuration of [`FlowDecoderModel`]. The defaults are the released decoder of MOSS-Speech (12.5 codes per second,
    chunks of 5 codes, 120.72 M parameters); [`FlowDecoderConfig.cosyvoice2`] gives that of CosyVoice 2 (112.55 M).

    Args:
        vocab_size (`int`): rows of the code table.
        codebook_size (`int`): codes in use, 0 to `codebook_size - 1`; the table of MOSS-Speech has unused rows. Codes
            outside are refused (the released code accepts them silently).
        num_mel_bins (`int`): channels of the mel spectrogram.
        sampling_rate (`int`): rate in Hz of the audio behind the mel spectrogram.
        hop_length (`int`): samples per mel frame.
        upsample_ratio (`int`): mel frames per code.
        chunk_size (`int`): codes per chunk of the streaming masks. A frame sees its whole chunk and everything before.
        pre_lookahead (`int`): following codes that each code is mixed with.
        speaker_embedding_size (`int`): size of the speaker vector.
        hidden_size, num_attention_heads, intermediate_size (`int`): geometry of the encoder layers.
        num_hidden_layers (`int`): encoder layers in front of the up-sampling.
        num_upsampled_layers (`int`): encoder layers behind it.
        layer_norm_eps (`float`): epsilon of the norms inside the encoder layers.
        norm_eps (`float`): epsilon of all other norms.
        dropout (`float`): dropout of the encoder, in training only.
        estimator_channels (`int`): width of the velocity estimator.
        estimator_num_heads, estimator_head_dim (`int`): its attention heads and their size.
        estimator_num_layers (`int`): transformer blocks per stage.
        estimator_num_mid_stages (`int`): stages between the first and the last one.
        num_timesteps (`int`): Euler steps of the sampler.
        guidance_scale (`float`): s of v = (1 + s) v(conditional) - s v(unconditional).
        time_schedule (`str`): times of the steps, `"cosine"` (1 - cos(pi k / 2 n)) or `"uniform"` (k / n).
        max_mel_frames (`int`): length of the fixed noise, thus of prompt and target together. Another length is also
            another noise.
        noise_seed (`int`): seed of the CPU generator behind the fixed noise.
        sigma_min (`float`): width of the target distribution around a mel spectrogram, in training.
        training_time_schedule (`str`): distribution of the times in training, `"cosine"` (uniform ones through
            1 - cos(pi t / 2)) or `"uniform"`.
        conditioning_dropout (`float`): probability with which a row is trained without codes, voice and prompt.
        prompt_probability (`float`): probability with which a row is trained with its own beginning as prompt.
        max_prompt_fraction (`float`): largest part of the row that this prompt covers.
        streaming_probability (`float`): probability with which a training batch has the streaming masks.
        initializer_range (`float`): standard deviation of fresh weights.
    """

    model_type = "flow_decoder"

    vocab_size: int = 20480
    codebook_size: int = 16384
    num_mel_bins: int = 80
    sampling_rate: int = 24000
    hop_length: int = 480
    upsample_ratio: int = 4
    chunk_size: int = 5
    pre_lookahead: int = 3
    speaker_embedding_size: int = 192
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_upsampled_layers: int = 4
    layer_norm_eps: float | int = 1e-12
    norm_eps: float | int = 1e-5
    dropout: float | int = 0.1
    estimator_channels: int = 256
    estimator_num_heads: int = 8
    estimator_head_dim: int = 64
    estimator_num_layers: int = 4
    estimator_num_mid_stages: int = 12
    num_timesteps: int = 10
    guidance_scale: float | int = 0.7
    time_schedule: str = "cosine"
    max_mel_frames: int = 15000
    noise_seed: int = 0
    sigma_min: float | int = 1e-6
    training_time_schedule: str = "cosine"
    conditioning_dropout: float | int = 0.2
    prompt_probability: float | int = 0.5
    max_prompt_fraction: float | int = 0.3
    streaming_probability: float | int = 1.0
    initializer_range: float | int = 0.02

    @classmethod
    def cosyvoice2(cls, **kwargs) -> "FlowDecoderConfig":
        """The decoder of CosyVoice 2: 25 codes per second, chunks of 25 codes; `kwargs` override fields."""
        return cls(**(_COSYVOICE2 | kwargs))

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.mel_frame_rate / self.upsample_ratio

    @property
    def mel_frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def max_codes(self) -> int:
        """Codes that fit into `max_mel_frames`, prompt included."""
        return self.max_mel_frames // self.upsample_ratio

    def validate_sizes(self):
        positive = ("vocab_size", "codebook_size", "num_mel_bins", "sampling_rate", "hop_length", "upsample_ratio")
        positive += ("chunk_size", "speaker_embedding_size", "hidden_size", "num_attention_heads", "intermediate_size")
        positive += ("estimator_channels", "estimator_num_heads", "estimator_head_dim", "num_timesteps")
        positive += ("max_mel_frames",)
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        counts = ("pre_lookahead", "num_hidden_layers", "num_upsampled_layers", "estimator_num_layers")
        counts += ("estimator_num_mid_stages",)
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.codebook_size > self.vocab_size:
            raise ValueError(
                f"codebook_size must be at most vocab_size, got {self.codebook_size} and {self.vocab_size}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                "hidden_size must be a multiple of twice num_attention_heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}"
            )
        if self.max_mel_frames < self.upsample_ratio:
            raise ValueError(
                f"max_mel_frames must hold a code at least ({self.upsample_ratio} frames), got {self.max_mel_frames}"
            )

    def validate_choices(self):
        for name in ("time_schedule", "training_time_schedule"):
            if getattr(self, name) not in ("cosine", "uniform"):
                raise ValueError(f"{name} must be 'cosine' or 'uniform', got {getattr(self, name)!r}")
        names = ("dropout", "conditioning_dropout", "prompt_probability", "max_prompt_fraction")
        for name in (*names, "streaming_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min must be in [0, 1), got {self.sigma_min}")


__all__ = ["FlowDecoderConfig"]
