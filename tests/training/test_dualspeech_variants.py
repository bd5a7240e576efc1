"""The paper's models as processors and configurations, and rows in the codes of the codec."""

import numpy as np
import pytest

from dualspeech import DualSpeechConfig, DualSpeechFeatureExtractor
from dualspeech.training.codec_rows import with_codec_codes
from dualspeech.training.dualspeech_variants import (
    VARIANTS,
    get_variant,
    parity_fields,
    variant_fields,
    variant_processor,
)
from tests.tiny import tiny_audio_tokenizer, tiny_tokenizer, tone


@pytest.mark.parametrize("name", VARIANTS)
def test_models_have_the_sizes_of_the_paper(name):
    variant = get_variant(name)
    processor = variant_processor(variant, tiny_tokenizer())
    fields = variant_fields(variant, processor, "causal")
    assert processor.semantic_codebook_size == fields["semantic_codebook_size"] == variant.codebook_size
    assert fields["semantic_frame_rate"] == {"us_tokenizer": 25, "kmeans": 50, "codec": 40}[variant.semantic]
    if variant.acoustic:
        assert fields["acoustic_config"]["codebook_size"] == 4096 and fields["speaker_embedding_size"] == 512
        assert fields["acoustic_config"]["condition_attention"] == "causal"
    else:
        assert fields["acoustic_config"] is None and processor.acoustic_codebook_size is None


def test_sizes_are_those_of_the_audio_tokenizer():
    audio_tokenizer = tiny_audio_tokenizer()
    processor = variant_processor(get_variant("ustoken"), tiny_tokenizer(), audio_tokenizer)
    sizes = processor.semantic_codebook_size, processor.acoustic_codebook_size, processor.speaker_embedding_size
    assert sizes == (24, 64, 12) and processor.audio_tokenizer is audio_tokenizer
    acoustic = variant_processor(get_variant("baseline_acoustic"), tiny_tokenizer(), audio_tokenizer)
    assert (acoustic.semantic_codebook_size, acoustic.audio_tokenizer) == (64, None)
    with pytest.raises(ValueError, match="the variant has no acoustic stage, but the processor has"):
        variant_fields(get_variant("baseline_semantic"), processor)
    with pytest.raises(ValueError, match="`variant` is 'x'; accepted are ustoken, hubert, baseline_acoustic"):
        get_variant("x")


def test_parity_is_all_that_the_preset_changes():
    ours, released = DualSpeechConfig().to_dict(), DualSpeechConfig.official_parity().to_dict()
    changed = {name: value for name, value in released.items() if value != ours[name]}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in parity_fields().items()} == {
        name: list(v) if isinstance(v, tuple) else v for name, v in changed.items()
    }


def test_recordings_become_codes_of_the_codec():
    audio_tokenizer, extractor = tiny_audio_tokenizer(), DualSpeechFeatureExtractor()
    recordings = [{"array": tone(0.4, 24000, 200 + 60 * i), "sampling_rate": 24000} for i in range(4)]
    rows = [
        {"task": "asr", "audio": recordings[0], "targets": "one"},
        {"task": "sc", "audio": recordings[1], "question": recordings[2], "targets": {"audio": recordings[3]}},
        {"task": "sqa", "audio": [1, 2, 3], "question": "who?", "targets": "me"},
        {"task": "tts", "text": "two", "speaker": "anna", "targets": {"acoustic_codes": [4, 5], "us_codes": [1]}},
    ]
    made = with_codec_codes(rows, audio_tokenizer, extractor)
    for recording, codes in zip(
        recordings,
        (made[0]["audio"], made[1]["audio"], made[1]["question"], made[1]["targets"]["us_codes"]),
        strict=True,
    ):
        values = extractor(recording, return_input_values=False, return_codec_values=True, return_tensors="pt")
        alone = audio_tokenizer.encode(**values, outputs=("acoustic_codes",)).acoustic_codes[0]
        assert codes == alone.tolist() and len(codes) == 80
    assert made[2] == rows[2] and made[3] == {"task": "tts", "text": "two", "targets": {"us_codes": [4, 5]}}
    assert rows[0]["audio"] is recordings[0]  # the rows that came in are as they were
    processor = variant_processor(get_variant("baseline_acoustic"), tiny_tokenizer(), audio_tokenizer)
    columns = {name: [row.get(name) for row in made] for name in ("task", "audio", "text", "question", "targets")}
    example = processor.build_examples(**columns)[1]
    ids = np.array(example["input_ids"]) - processor.speech_token_ids.semantic_token_offset
    assert ids[(ids >= 0) & (ids < 64)].tolist() == [
        *made[1]["audio"], *made[1]["question"], *made[1]["targets"]["us_codes"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must have a codec"):
        with_codec_codes(rows, tiny_audio_tokenizer(acoustic_codec=None), extractor)
