"""Task rows whose speech the language model reads and writes as codec codes (Baseline-Acoustic of DualSpeechLM)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..modeling.modeling_dual_tokenizer import DualTokenizerModel
from ..processing.feature_extraction_dualspeech import DualSpeechFeatureExtractor
from ..processing.row_inputs import codes_of
from ..processing.tasks import get_task


def with_codec_codes(
    rows: Sequence[Mapping[str, Any]],
    audio_tokenizer: DualTokenizerModel,
    feature_extractor: DualSpeechFeatureExtractor,
    resample: bool = False,
) -> list[dict[str, Any]]:
    """
    `rows` with the codes of the codec in place of recordings, in the questions and as `us_codes` of the targets: a
    processor without an acoustic stage, whose `semantic_codebook_size` is that of the codec, then builds examples of the
    paper's Baseline-Acoustic ("both input and output are acoustic tokens from WavTokenizer").

    Args:
        rows: arguments of [`DualSpeechProcessor`]; what is no recording counts as codes of the codec. A `speaker` is
            left out, as the model has no speaker token.

    Raises:
        ValueError: the audio tokenizer has no codec with one code per position, or a recording is refused.
    """
    if audio_tokenizer.acoustic_codec is None or audio_tokenizer.num_acoustic_codebooks != 1:
        raise ValueError("`audio_tokenizer` must have a codec with one code per position")
    made = [{name: value for name, value in row.items() if name != "speaker"} for row in rows]
    found = []
    for row in made:
        for name in get_task(row["task"]).speech_fields:
            if row.get(name) is not None and codes_of(row[name]) is None:
                found.append((row, name, row[name]))
        target = row.get("targets")
        if isinstance(target, Mapping) and target.get("audio") is not None:
            row["targets"] = {}
            found.append((row["targets"], "us_codes", target["audio"]))
        elif isinstance(target, Mapping) and target.get("acoustic_codes") is not None:
            row["targets"] = {"us_codes": target["acoustic_codes"]}
    if found:
        features = feature_extractor(
            [recording for _, _, recording in found],
            resample=resample,
            return_input_values=False,
            return_codec_values=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            encoded = audio_tokenizer.encode(**features.to(audio_tokenizer.device), outputs=("acoustic_codes",))
        codes = zip(found, encoded.acoustic_codes, encoded.acoustic_codes_mask, strict=True)
        for (holder, name, _), values, mask in codes:
            holder[name] = values[mask.bool()].tolist()
    return made


__all__ = ["with_codec_codes"]
