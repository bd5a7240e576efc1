"""Configuration of the MOSS-Speech codec: causal encoder, flow decoder, vocoder and speaker encoder as one model."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_campplus import CamPPlusConfig
from .configuration_flow_decoder import FlowDecoderConfig
from .configuration_hift import HiFTConfig
from .configuration_whisper_vq import WhisperVqConfig

SPEAKER_EMBEDDING_SIZE = 192  # of the CAM++ inside the released codec


@strict
class MossSpeechCodecConfig(PreTrainedConfig):
    """
    Configuration of [`MossSpeechCodecModel`]. The defaults are the released codec of MOSS-Speech: 16384 codes at 12.5
    per second from speech at 16 kHz, back to speech at 24 kHz.

    Args:
        encoder_config (`WhisperVqConfig` or `dict`, *optional*):
            Speech to codes. With `None` the codec only decodes: the decoder of CosyVoice 2, whose codes come from a
            tokenizer that is not part of this package, is such a codec.
        flow_config (`FlowDecoderConfig` or `dict`, *optional*):
            Codes to mel spectrogram.
        vocoder_config (`HiFTConfig` or `dict`, *optional*):
            Mel spectrogram to waveform.
        speaker_config (`CamPPlusConfig` or `dict`, *optional*):
            Speaker encoder for voices; 192 numbers unless it says otherwise. With `None` voices have no speaker vector.
        prompt_n_fft (`int`, defaults to 1920):
            Window in samples of the mel spectrogram of a voice prompt, at the rate and with the hop of the vocoder.
        prompt_max_frequency (`float`, defaults to 8000):
            Upper edge of its last mel filter in Hz.
        max_prompt_seconds (`float`, defaults to 30):
            Longest recording of which a voice is made.
    """

    model_type = "moss_speech_codec"
    sub_configs_defaults = {
        "encoder_config": SubConfigSpec(config_class=WhisperVqConfig, optional=True),
        "flow_config": SubConfigSpec(config_class=FlowDecoderConfig),
        "vocoder_config": SubConfigSpec(config_class=HiFTConfig),
        "speaker_config": SubConfigSpec(config_class=CamPPlusConfig, optional=True),
    }
    # The base plan names layers of a plain decoder.
    base_model_fsdp_plan = {}

    # An empty dict asks for the defaults, `None` for no such part.
    encoder_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    flow_config: dict | PreTrainedConfig | None = None
    vocoder_config: dict | PreTrainedConfig | None = None
    speaker_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    prompt_n_fft: int = 1920
    prompt_max_frequency: float | int = 8000.0
    max_prompt_seconds: float | int = 30.0

    def __post_init__(self, **kwargs):
        if isinstance(self.speaker_config, dict):
            self.speaker_config = {"embedding_size": SPEAKER_EMBEDDING_SIZE, **self.speaker_config}
        super().__post_init__(**kwargs)

    @property
    def codebook_size(self) -> int:
        """Codes are 0 to `codebook_size - 1`."""
        return self.flow_config.codebook_size

    @property
    def num_mel_bins(self) -> int:
        return self.flow_config.num_mel_bins

    @property
    def speaker_embedding_size(self) -> int:
        return self.flow_config.speaker_embedding_size

    @property
    def frames_per_code(self) -> int:
        """Mel frames per code."""
        return self.flow_config.upsample_ratio

    @property
    def hop_length(self) -> int:
        """Output samples per code."""
        return self.frames_per_code * self.vocoder_config.hop_length

    @property
    def sampling_rate(self) -> int:
        """Rate of decoded audio in Hz."""
        return self.vocoder_config.sampling_rate

    @property
    def input_sampling_rate(self) -> int | None:
        """Rate in Hz of the audio that is encoded; `None` without an encoder."""
        return None if self.encoder_config is None else self.encoder_config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.sampling_rate / self.hop_length

    def validate_parts(self):
        encoder, flow, vocoder, speaker = (
            getattr(self, name) for name in ("encoder_config", "flow_config", "vocoder_config", "speaker_config")
        )
        pairs = [
            ("num_mel_bins of flow_config and vocoder_config", flow.num_mel_bins, vocoder.num_mel_bins),
            ("sampling_rate of flow_config and vocoder_config", flow.sampling_rate, vocoder.sampling_rate),
            ("hop_length of flow_config and vocoder_config", flow.hop_length, vocoder.hop_length),
        ]
        if encoder is not None:
            pairs.append(
                ("codebook_size of encoder_config and flow_config", encoder.codebook_size, flow.codebook_size)
            )
            # in samples of the encoder, so that both sides are whole numbers
            pairs.append(
                (
                    "codes per second of encoder_config and flow_config",
                    encoder.sampling_rate / encoder.samples_per_code,
                    vocoder.sampling_rate / (flow.upsample_ratio * vocoder.hop_length),
                )
            )
        if speaker is not None:
            pairs.append(
                (
                    "embedding_size of speaker_config and speaker_embedding_size of flow_config",
                    speaker.embedding_size,
                    flow.speaker_embedding_size,
                )
            )
        for what, first, second in pairs:
            if first != second:
                raise ValueError(f"{what} must be equal, got {first} and {second}")

    def validate_prompt(self):
        hop = self.vocoder_config.hop_length
        if self.prompt_n_fft < hop or (self.prompt_n_fft - hop) % 2:
            raise ValueError(
                f"prompt_n_fft must exceed the hop of {hop} samples by an even number, got {self.prompt_n_fft}"
            )
        if not 0 < self.prompt_max_frequency <= self.sampling_rate / 2:
            raise ValueError(
                f"prompt_max_frequency must be in (0, {self.sampling_rate / 2}] Hz, got {self.prompt_max_frequency}"
            )
        if self.max_prompt_seconds <= 0:
            raise ValueError(f"max_prompt_seconds must be positive, got {self.max_prompt_seconds}")


__all__ = ["MossSpeechCodecConfig"]
