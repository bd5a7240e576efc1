"""The models that the paper of DualSpeechLM compares (section "Experiment Setup", table 1), and their processors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration.configuration_dualspeech import DualSpeechConfig
from ..processing.feature_extraction_dualspeech import DualSpeechFeatureExtractor
from ..processing.processing_dualspeech import DualSpeechProcessor
from ..processing.tokenization_dualspeech import extend_tokenizer


@dataclass(frozen=True)
class Variant:
    """
    Args:
        semantic: whose codes the language model reads and writes: `"us_tokenizer"`, `"kmeans"` (HuBERT) or `"codec"`.
        codebook_size, frame_rate: number of these codes, and codes per second.
        acoustic: whether AcousticGPT makes codec codes of them. Without it, they are the output.
        source: where the sizes come from.
    """

    semantic: str
    codebook_size: int
    frame_rate: float
    acoustic: bool
    source: str


VARIANTS: Mapping[str, Variant] = {
    "ustoken": Variant("us_tokenizer", 1024, 25.0, True, "DualSpeechLM-USToken; appendix D"),
    # The paper gives no number of units; 500 is that of the released code's tokenizer folder.
    "hubert": Variant("kmeans", 500, 50.0, True, "DualSpeechLM-Hubert; HuBERT units"),
    "baseline_acoustic": Variant("codec", 4096, 40.0, False, "Baseline-Acoustic; WavTokenizer codes in and out"),
    "baseline_semantic": Variant("kmeans", 500, 50.0, False, "Baseline-Semantic; HuBERT units in and out"),
}
# Fields in which training as released differs from ours, beside the attention of AcousticGPT.
_PARITY = ("coc_probabilities", "coc_granularity", "acoustic_on_understanding", "condition_on_eos")


def get_variant(name: str) -> Variant:
    """The variant called `name`; a `ValueError` that lists the names otherwise."""
    if name not in VARIANTS:
        raise ValueError(f"`variant` is {name!r}; accepted are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variant_processor(
    variant: Variant, tokenizer: PreTrainedTokenizerBase, audio_tokenizer: PreTrainedModel | None = None
) -> DualSpeechProcessor:
    """
    A processor of the sizes of `variant`, or of those that `audio_tokenizer` has; `tokenizer` gets the speech tokens.

    Args:
        audio_tokenizer ([`DualTokenizerModel`], *optional*): at the side of the processor; for `"codec"` it only gives
            the number of codes (recordings are then encoded by `with_codec_codes`).
    """
    is_codec = variant.semantic == "codec"
    sizes = {"semantic_codebook_size": variant.codebook_size}
    if audio_tokenizer is not None:
        source = audio_tokenizer.acoustic_codebook_size if is_codec else audio_tokenizer.semantic_codebook_size
        sizes["semantic_codebook_size"] = source or variant.codebook_size
    if not variant.acoustic:
        sizes["acoustic_codebook_size"] = None
    elif audio_tokenizer is not None:
        sizes["acoustic_codebook_size"] = audio_tokenizer.acoustic_codebook_size
        sizes["num_acoustic_codebooks"] = audio_tokenizer.num_acoustic_codebooks
        sizes["speaker_embedding_size"] = audio_tokenizer.speaker_embedding_size
    extend_tokenizer(tokenizer, sizes["semantic_codebook_size"])
    extractor = DualSpeechFeatureExtractor(**_recording_fields(audio_tokenizer))
    return DualSpeechProcessor(extractor, tokenizer, **sizes, audio_tokenizer=None if is_codec else audio_tokenizer)


def _recording_fields(audio_tokenizer: PreTrainedModel | None) -> dict[str, Any]:
    """Rates and lengths of the recordings that `audio_tokenizer` reads, as fields of the feature extractor."""
    if audio_tokenizer is None:
        return {}
    rates = {
        "sampling_rate": audio_tokenizer.semantic_sampling_rate,
        "codec_sampling_rate": audio_tokenizer.codec_sampling_rate,
    }
    semantic = audio_tokenizer.config.semantic_config
    lengths = {name: getattr(semantic, name, None) for name in ("min_seconds", "max_seconds")}
    return {name: value for name, value in (rates | lengths).items() if value is not None}


def variant_fields(
    variant: Variant, processor: DualSpeechProcessor, condition_attention: str = "bidirectional", **kwargs
) -> dict[str, Any]:
    """
    Fields of [`DualSpeechConfig`] for a model of `variant` that goes with `processor`.

    Args:
        condition_attention, kwargs: fields of [`AcousticGPTConfig`].

    Raises:
        ValueError: one of them has an acoustic stage and the other has not, or fields for one that there is not.
    """
    if variant.acoustic != (processor.acoustic_codebook_size is not None):
        raise ValueError(
            f"the variant has {'an' if variant.acoustic else 'no'} acoustic stage, but the processor has "
            f"`acoustic_codebook_size` {processor.acoustic_codebook_size}"
        )
    if kwargs and not variant.acoustic:
        raise ValueError(f"the variant has no acoustic stage, but fields of one are given: {sorted(kwargs)}")
    acoustic = {
        **kwargs,
        "codebook_size": processor.acoustic_codebook_size,
        "num_codebooks": processor.num_acoustic_codebooks,
        "condition_attention": condition_attention,
    }
    return {
        "semantic_codebook_size": processor.semantic_codebook_size,
        "semantic_frame_rate": variant.frame_rate,
        "speaker_embedding_size": processor.speaker_embedding_size,
        "acoustic_config": acoustic if variant.acoustic else None,
    }


def parity_fields() -> dict[str, Any]:
    """The fields that [`DualSpeechConfig.official_parity`] sets, for a model that exists."""
    parity = DualSpeechConfig.official_parity()
    return {name: getattr(parity, name) for name in _PARITY}


__all__ = ["VARIANTS", "Variant", "get_variant", "parity_fields", "variant_fields", "variant_processor"]
