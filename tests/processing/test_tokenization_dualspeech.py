"""Speech tokens in text tokenizers."""

import pytest
from transformers import AutoTokenizer

from dualspeech.processing.tokenization_dualspeech import extend_tokenizer, speech_token_ids
from tests.tiny import tiny_tokenizer

KINDS = ["metaspace", "metaspace_first", "byte_level"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 12])
def test_added_in_the_released_order(kind, size, tmp_path):
    tokenizer = tiny_tokenizer(kind)
    before = len(tokenizer)
    ids = extend_tokenizer(tokenizer, size)
    assert (ids.audio_start_token_id, ids.audio_end_token_id, ids.semantic_token_offset) == (
        before,
        before + 1,
        before + 2,
    )
    assert len(tokenizer) == before + 2 + size
    assert extend_tokenizer(tokenizer, size) == ids and len(tokenizer) == before + 2 + size
    assert tokenizer.convert_ids_to_tokens(before + 1 + size) == f"<a_{size - 1}>"
    spoken = ids.encode([0, size - 1])
    assert spoken == [before, before + 2, before + 1 + size, before + 1]
    assert tokenizer.decode(spoken, skip_special_tokens=True) == ""
    assert (
        all(i in ids for i in range(before, before + 2 + size)) and before - 1 not in ids and len(tokenizer) not in ids
    )
    tokenizer.save_pretrained(tmp_path)
    assert speech_token_ids(AutoTokenizer.from_pretrained(tmp_path), size) == ids


def test_codes_outside_the_codebook():
    ids = extend_tokenizer(tiny_tokenizer(), 4)
    for code in (-1, 4):
        with pytest.raises(ValueError, match=f"`us_codes` holds {code}; accepted are the codes 0 to 3"):
            ids.encode([0, code])


def test_tokenizers_that_do_not_fit():
    with pytest.raises(ValueError, match="`codebook_size` must be positive, got 0"):
        extend_tokenizer(tiny_tokenizer(), 0)
    with pytest.raises(ValueError, match="lacks 6 of the 6 speech tokens, first '<audio>'; add them"):
        speech_token_ids(tiny_tokenizer(), 4)
    smaller = tiny_tokenizer(codebook_size=4)
    with pytest.raises(ValueError, match="already has 6 of the 10 speech tokens"):
        extend_tokenizer(smaller, 8)
    with pytest.raises(ValueError, match="'<a_2>', so its codebook is larger than `codebook_size`=2"):
        extend_tokenizer(smaller, 2)
    scattered = tiny_tokenizer()
    scattered.add_tokens(["<audio>", "</audio>", "<a_0>", "other", "<a_1>"])
    with pytest.raises(ValueError, match=r"consecutive ids to '<a_0>' ... '<a_1>'"):
        speech_token_ids(scattered, 2)
