"""Configuration of the training of speech encoders by speech recognition."""

import copy
import string

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig

from ..configuration.configuration_whisper_vq import WhisperVqConfig

ENCODER_CONFIGS = {"whisper": WhisperConfig, "whisper_vq": WhisperVqConfig}
BLANK_ID = 0  # of CTC; characters follow


@strict
class SpeechEncoderForCtcConfig(PreTrainedConfig):
    """
    Configuration of [`SpeechEncoderForCtc`].

    Args:
        encoder_config (`dict`, `WhisperConfig` or `WhisperVqConfig`): the encoder; Whisper by default.
        vocabulary (`list[str]`): the characters of transcripts, in lower case. Their ids begin at 1; 0 is the blank of
            CTC.
        removed_characters (`str`): characters that are left out of transcripts, such as punctuation.
        frames_per_output (`int`, *optional*): predictions for each vector of the encoder, which CTC needs where there
            are fewer vectors than characters. By default as many as give 50 predictions per second: 1 for Whisper, 4 for
            the 12.5 codes per second of Whisper-VQ.
        head_layers (`int`): bidirectional Transformer layers between the encoder, or its codebook, and the predictions.
            They do what in GLM-4-Voice and CosyVoice the rest of the recogniser does behind its quantiser, and are
            thrown away with the head.
        quantize_start_batches (`int`): training batches of each process in front of the quantiser's start. The encoder
            then learns without it; the codebook starts by k-means over the last vectors.
        quantize_buffer_size (`int`): vectors that are kept for this start.
        kmeans_iterations (`int`): iterations of it.
        quantize_restart_share (`float`): codes that are used less than this share of the mean use are restarted every
            `encoder_config.quantize_restart_interval` batches; 0 switches it off.
    """

    model_type = "speech_encoder_for_ctc"
    sub_configs = {"encoder_config": AutoConfig}
    keys_to_ignore_at_inference = ["ctc_loss", "commitment_loss", "perplexity", "codes"]

    encoder_config: dict | PreTrainedConfig | None = None
    vocabulary: list[str] | tuple[str, ...] = (" ", "'", *string.ascii_lowercase)
    removed_characters: str = ""
    frames_per_output: int | None = None
    head_layers: int = 0
    quantize_start_batches: int = 1000
    quantize_buffer_size: int = 16384
    kmeans_iterations: int = 20
    quantize_restart_share: float | int = 0.05

    def __post_init__(self, **kwargs):
        config = copy.deepcopy(self.encoder_config)
        if config is None or isinstance(config, dict):
            fields = dict(config or {})
            kind = fields.pop("model_type", "whisper")
            if kind not in ENCODER_CONFIGS:
                raise ValueError(f"`encoder_config` is of type {kind!r}; accepted are {sorted(ENCODER_CONFIGS)}")
            config = ENCODER_CONFIGS[kind](**fields)
        self.encoder_config = config
        if self.frames_per_output is None:
            self.frames_per_output = config.pooling_kernel_size if self.is_quantized else 1
        super().__post_init__(**kwargs)

    @property
    def is_quantized(self) -> bool:
        """Whether the encoder has a codebook."""
        return self.encoder_config.model_type == "whisper_vq"

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms."""
        return WhisperVqConfig.sampling_rate

    @property
    def max_samples(self) -> int:
        """Longest accepted recording: what the encoder has positions for."""
        return 2 * WhisperVqConfig.mel_hop_length * self.encoder_config.max_source_positions

    @property
    def min_samples(self) -> int:
        """Shortest accepted recording: one vector of Whisper."""
        return 2 * WhisperVqConfig.mel_hop_length

    def num_outputs(self, num_samples):
        """Vectors of the encoder of `num_samples` (an `int` or an integer tensor): as many as
        [`UsTokenizerModel`](50 per second, the last whole one) and [`WhisperVqModel`] (12.5, completed) take."""
        if self.is_quantized:
            return -(-num_samples // self.encoder_config.samples_per_code)
        return num_samples // self.min_samples

    def num_predictions(self, num_samples):
        """Predictions of `num_samples` (an `int` or an integer tensor)."""
        return self.frames_per_output * self.num_outputs(num_samples)

    def normalize(self, text: str) -> str:
        """A transcript as it is learned: in lower case, without `removed_characters`, with single spaces."""
        text = "".join(character for character in text.lower() if character not in self.removed_characters)
        return " ".join(text.split())

    def label_ids(self, text: str) -> list[int]:
        """
        Ids of the characters of a transcript.

        Raises:
            ValueError: characters outside the vocabulary, or nothing that is left of the text.
        """
        ids = {character: index for index, character in enumerate(self.vocabulary, start=BLANK_ID + 1)}
        characters = self.normalize(text)
        if not characters:
            raise ValueError(f"text: {text!r:.80} has no characters to learn")
        if unknown := sorted(set(characters) - set(ids)):
            raise ValueError(f"text: {text!r:.80} has the characters {unknown}, which `vocabulary` does not have")
        return [ids[character] for character in characters]

    def validate_vocabulary(self):
        """The vocabulary has single characters, each once."""
        if not self.vocabulary or len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError(f"`vocabulary` must hold characters, each once, got {list(self.vocabulary)}")
        if wrong := [entry for entry in self.vocabulary if len(entry) != 1 or entry != entry.lower()]:
            raise ValueError(f"`vocabulary` must hold single characters in lower case, got {wrong}")

    def validate_encoder(self):
        """The encoder is one of those that can be trained."""
        if self.encoder_config.model_type not in ENCODER_CONFIGS:
            raise ValueError(
                f"`encoder_config` is of type {self.encoder_config.model_type!r}; accepted are {sorted(ENCODER_CONFIGS)}"
            )

    def validate_numbers(self):
        """Numbers are positive where they must be."""
        for name in ("frames_per_output", "quantize_start_batches", "quantize_buffer_size", "kmeans_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("head_layers", "quantize_restart_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")


__all__ = ["BLANK_ID", "ENCODER_CONFIGS", "SpeechEncoderForCtcConfig"]
