"""Configurations of the dual audio tokenizer and of the semantic tokenizer made of a speech encoder and k-means."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

CODEBOOK_PATTERNS = ("first", "flatten", "delay")
# Codecs whose latents are continuous: AcousticGPT predicts ids and cannot be trained on them.
CONTINUOUS_CODECS = ("pocket_tts_audio_tokenizer", "vibevoice_acoustic_tokenizer")


@strict
class KMeansTokenizerConfig(PreTrainedConfig):
    """
    Configuration of [`KMeansTokenizerModel`]: a self-supervised speech encoder whose hidden vectors are quantised with
    k-means (HuBERT units; the semantic tokenizer of the variant DualSpeechLM-Hubert).

    Args:
        encoder_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of an encoder that reads waveforms (HuBERT, WavLM, wav2vec 2.0, UniSpeech-SAT, Data2Vec).
            Defaults to `HubertConfig()`. Layers above `layer` are computed in vain: set its `num_hidden_layers` to
            `layer` to leave them out.
        codebook_size (`int`, defaults to 500):
            Number of centroids; 500 as in the usual HuBERT units.
        layer (`int`, defaults to -1):
            Whose output is quantised: 0 is the input of the first transformer layer, i the output of layer i, and -1
            `last_hidden_state` (which has passed the final norm of encoders that have one).
        do_normalize (`bool`, defaults to `True`):
            Whether each waveform is brought to zero mean and unit variance, as `do_normalize` of the feature
            extractor of the pretrained encoder says.
        sampling_rate (`int`, defaults to 16000):
            Rate of the waveforms in Hz.
        initializer_range (`float`, defaults to 1.0):
            Standard deviation of the centroids before they are fitted.
    """

    model_type = "kmeans_tokenizer"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="hubert")}
    # The base plan names layers of a plain decoder.
    base_model_fsdp_plan = {}

    encoder_config: dict | PreTrainedConfig | None = None
    codebook_size: int = 500
    layer: int = -1
    do_normalize: bool = True
    sampling_rate: int = 16000
    initializer_range: float | int = 1.0

    def validate_sizes(self):
        for name in ("codebook_size", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")

    def validate_encoder(self):
        encoder = self.encoder_config
        if not hasattr(encoder, "conv_stride") or not hasattr(encoder, "conv_kernel"):
            raise ValueError(
                "`encoder_config` must belong to an encoder that reads waveforms with strided convolutions (hubert, "
                f"wavlm, wav2vec2, unispeech-sat, data2vec-audio), got {encoder.model_type!r}"
            )
        if not -1 <= self.layer <= encoder.num_hidden_layers:
            raise ValueError(f"`layer` must be from -1 to {encoder.num_hidden_layers}, got {self.layer}")


@strict
class DualTokenizerConfig(PreTrainedConfig):
    """
    Configuration of [`DualTokenizerModel`], the frozen audio tokenizer of DualSpeechLM: a semantic tokenizer, an
    acoustic codec and a speaker encoder. A part whose configuration is `None` does not exist.

    Args:
        semantic_config (`PreTrainedConfig` or `dict`, *optional*):
            Semantic tokenizer: `us_tokenizer` (the paper's) or `kmeans_tokenizer`.
        codec_config (`PreTrainedConfig` or `dict`, *optional*):
            Acoustic codec: `dualspeech_wavtokenizer` (the paper's), `xcodec2`, `neucodec` (one codebook), `mimi`,
            `encodec`, `dac` (several).
        speaker_config (`PreTrainedConfig` or `dict`, *optional*):
            Speaker encoder: `campplus`, or a model of `AutoModelForAudioXVector` that reads waveforms (`wavlm`, ...).
        num_codebooks (`int`, *optional*):
            How many codebooks of the codec are used, the coarsest first. Defaults to 1 under the pattern `"first"`,
            and to all that the codec has otherwise.
        codebook_pattern (`str`, *optional*):
            How AcousticGPT reads K codebooks of N codes: `"first"` only the first codebook, `"flatten"` one sequence
            of K ids per frame, id k * N + code, `"delay"` K parallel ids, codebook k shifted by k frames (the shift is
            AcousticGPT's). Defaults to `"first"` for one codebook and `"delay"` for several.
        speaker_do_normalize (`bool`, defaults to `True`):
            Whether a speaker encoder that reads waveforms gets them with zero mean and unit variance, as
            `do_normalize` of the feature extractor of its checkpoint says. CAM++ ignores it.
    """

    model_type = "dual_tokenizer"
    sub_configs_defaults = {
        "semantic_config": SubConfigSpec(config_class=AutoConfig, model_type="us_tokenizer", optional=True),
        "codec_config": SubConfigSpec(config_class=AutoConfig, model_type="dualspeech_wavtokenizer", optional=True),
        "speaker_config": SubConfigSpec(config_class=AutoConfig, model_type="campplus", optional=True),
    }
    base_model_fsdp_plan = {}

    semantic_config: dict | PreTrainedConfig | None = None
    codec_config: dict | PreTrainedConfig | None = None
    speaker_config: dict | PreTrainedConfig | None = None
    num_codebooks: int | None = None
    codebook_pattern: str | None = None
    speaker_do_normalize: bool = True

    def validate_codebooks(self):
        if self.codebook_pattern is not None and self.codebook_pattern not in CODEBOOK_PATTERNS:
            raise ValueError(f"`codebook_pattern` must be one of {CODEBOOK_PATTERNS}, got {self.codebook_pattern!r}")
        if self.num_codebooks is not None and self.num_codebooks < 1:
            raise ValueError(f"`num_codebooks` must be at least 1, got {self.num_codebooks}")
        if self.codebook_pattern == "first" and self.num_codebooks not in (None, 1):
            raise ValueError(f"the codebook pattern 'first' uses 1 codebook, got `num_codebooks={self.num_codebooks}`")
        if self.codebook_pattern in ("flatten", "delay") and self.num_codebooks == 1:
            raise ValueError(f"the codebook pattern {self.codebook_pattern!r} needs several codebooks, got 1")

    def validate_codec(self):
        if self.codec_config is not None:
            check_discrete(self.codec_config)


def check_discrete(codec_config: PreTrainedConfig) -> None:
    """Raise a `ValueError` for a codec without codebooks."""
    if codec_config.model_type in CONTINUOUS_CODECS:
        raise ValueError(
            f"the codec {codec_config.model_type!r} has continuous latents, and AcousticGPT predicts discrete codes; "
            "use a codec with codebooks"
        )


__all__ = ["CODEBOOK_PATTERNS", "CONTINUOUS_CODECS", "DualTokenizerConfig", "KMeansTokenizerConfig", "check_discrete"]
