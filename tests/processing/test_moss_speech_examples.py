"""Examples to learn from: chats, and interleaved documents."""

import pytest
import torch
from datasets import Dataset

from dualspeech.modeling.split_layer_rows import rows_to_flat
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.processing.moss_processor_cases import (
    ANSWER,
    CODEBOOK,
    SPEAK,
    USER,
    WRITE,
    Rows,
    answers,
    fitting_config,
    rows_of,
    says,
    tiny_moss_processor,
)


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


@pytest.fixture
def processor():
    return tiny_moss_processor()


@pytest.fixture
def speaking(codec):
    return tiny_moss_processor(codec)


@pytest.mark.parametrize("answer", [ANSWER, answers(7, 7, 2)])
@pytest.mark.parametrize("asked", [USER, says(3, 1, 4)])
def test_examples_of_the_four_pairs(processor, asked, answer):
    rows, ids = Rows(processor), processor.row_ids
    example = processor.build_example([asked, answer])
    modality = "text" if answer is ANSWER else "audio"
    prompt = rows_of(processor([asked], modality))
    said = rows.text("an answer") if modality == "text" else rows.codes(7, 7, 2) + rows.end
    assert example["input_ids"] == prompt + said + rows.text("<|im_end|>\n")
    flat = [ids.vocab_size + a if t == ids.modality_pad_token_id else t for t, a in said + rows.stop]
    assert example["labels"] == [-100] * len(prompt) + flat + [-100]
    assert all(type(value) is int for value in example["labels"])


def test_examples_of_several_turns(processor):
    rows, ids = Rows(processor), processor.row_ids
    chat = [USER, ANSWER, says(2), answers(5, 6), USER, ANSWER]
    example = processor.build_example(chat)
    learned = [row for row, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    written = rows.text("an answer") + rows.stop
    assert learned == written + rows.codes(5, 6) + rows.end + rows.stop + written
    assert example["input_ids"][: len(rows.turn("system", WRITE))] == rows.turn("system", WRITE)
    spoken = processor.build_example(chat, "audio")
    assert spoken["input_ids"][: len(rows.turn("system", SPEAK))] == rows.turn("system", SPEAK)
    started = processor.build_example(chat, learn_start_of_speech=True)
    extra = [i for i, (a, b) in enumerate(zip(example["labels"], started["labels"], strict=True)) if a != b]
    assert [started["input_ids"][i] for i in extra] == [ids.start_of_speech]
    assert started["labels"][extra[0]] == ids.sosp_token_id
    bare = processor.build_example(chat, add_system_prompt=False)
    assert bare["input_ids"] == example["input_ids"][len(rows.turn("system", WRITE)) :]


def test_examples_of_recordings_and_their_batch(speaking):
    samples = recording(0.4).numpy()
    (codes,) = speaking.encode_audio((samples, 16000))
    heard = {"role": "user", "content": {"type": "audio", "audio": (samples, 16000)}}
    chats = [[heard, ANSWER], [USER, {"role": "assistant", "content": heard["content"]}]]
    examples = speaking.build_examples(chats)
    assert examples == [
        speaking.build_example([says(*codes.tolist()), ANSWER]),
        speaking.build_example([USER, answers(*codes.tolist())]),
    ]
    batch = speaking.pad(examples)
    for i, example in enumerate(examples):
        length = len(example["input_ids"])
        assert batch["input_ids"][i, :length].tolist() == example["input_ids"]
        assert batch["labels"][i].tolist() == example["labels"] + [-100] * (batch["labels"].shape[1] - length)
        assert batch["attention_mask"][i].sum() == length


def test_interleaved_documents(speaking):
    rows, ids = Rows(speaking), speaking.row_ids
    samples = recording(0.3).numpy()
    (codes,) = speaking.encode_audio((samples, 16000))
    audio = {"type": "audio", "audio": (samples, 16000)}
    document = speaking.build_document(["the ", audio, {"type": "text", "text": "end"}, {"codes": [1]}])
    expected = rows.text("the ") + rows.speech(*codes.tolist()) + rows.text("end") + rows.speech(1)
    assert document["input_ids"] == [*expected, ids.padding]
    flat = [ids.vocab_size + a if t == ids.modality_pad_token_id else t for t, a in document["input_ids"]]
    assert document["labels"] == flat
    both = speaking.build_documents([[audio], ["a", "b"]])
    assert both[0]["input_ids"] == [*rows.speech(*codes.tolist()), ids.padding]
    assert both[1]["input_ids"] == [*rows.text("a"), *rows.text("b"), ids.padding]


def test_examples_that_cannot_be_learned_from(processor):
    for arguments, message in [
        (([USER],), "must end with a turn of the assistant, the last one is of the user"),
        (([USER, ANSWER], "image"), "`output_modalities` holds 'image'"),
        (([[USER, ANSWER], [USER, ANSWER]],), "`build_example` makes one example, 2 were given"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.build_example(*arguments)
    with pytest.raises(ValueError, match=r"example 0 has .* rows; `max_length` is 12, and nothing is cut"):
        processor.build_example([USER, ANSWER], max_length=12)
    for document in ([], "text", {"text": "a"}):
        with pytest.raises(ValueError, match="document 0 must be a list of chunks, not empty"):
            processor.build_document(document)
    with pytest.raises(ValueError, match="document 0, chunk 1 is int"):
        processor.build_document(["a", 5])
    with pytest.raises(ValueError, match="1 of 2 have `labels`; all or none"):
        processor.pad([processor.build_example([USER, ANSWER]), {"input_ids": [[1, 5]]}])


def test_flat_ids_of_labels_are_those_of_the_model(processor):
    config = fitting_config(processor)
    document = processor.build_document(["ab", {"codes": [1, 26]}, "c"])
    assert document["labels"] == rows_to_flat(torch.tensor(document["input_ids"]), config).tolist()
    assert document["labels"][3:6] == [config.vocab_size + 1, config.vocab_size + 26, config.vocab_size + CODEBOOK]


def test_conversations_and_examples_of_a_data_set(processor):
    # A data set fills the keys that a part lacks with `None`.
    chats = [
        [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}, answers(5, 6)],
        [
            {"role": "user", "content": [{"type": "audio", "codes": [2]}]},
            {**ANSWER, "content": [{"text": "an answer"}]},
        ],
    ]
    stored = Dataset.from_list([{"messages": chat} for chat in chats])
    assert stored[0]["messages"][0]["content"][0]["codes"] is None
    data = stored.map(lambda row: processor.build_example(row["messages"]), remove_columns=["messages"])
    expected = processor.build_examples(chats)
    assert [dict(row) for row in data] == expected
    assert torch.equal(processor.pad(list(data))["labels"], processor.pad(expected)["labels"])
