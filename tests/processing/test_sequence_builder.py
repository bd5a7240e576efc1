"""Rows of ids against the released layouts, other tokenizers, and padding."""

import re

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dualspeech import DualSpeechFeatureExtractor, DualSpeechProcessor
from dualspeech.processing.sequence_builder import AcousticTargets, SequenceBuilder, pad_examples
from dualspeech.processing.tasks import TASKS
from dualspeech.processing.tokenization_dualspeech import speech_token_ids
from tests.fixture_checks import FIXTURES, check, load
from tests.tiny import tiny_tokenizer

NAMES = list(TASKS)


@pytest.fixture(scope="module")
def released():
    """The recorded layouts, and a processor with their tokenizer (speech tokens are ordinary tokens there)."""
    _, tensors, meta = load("dualspeech_layouts")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(FIXTURES / "dualspeech_layouts" / "tokenizer.json"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )
    processor = DualSpeechProcessor(DualSpeechFeatureExtractor(), tokenizer, semantic_codebook_size=16)
    return processor, tensors, meta


def arguments(name, sample):
    """How one recorded sample is given to the processor."""
    task = TASKS[name]
    given = {
        "audio": sample["audio_ids"],
        "question": sample["question_ids"] if name == "sc" else sample["question"],
        "text": sample["input_text"] if name == "t2st" else sample["text"],
        "source_language": sample["source_language"],
        "target_language": sample["target_language"],
    }
    if task.output == "text":
        targets = sample["text"]
    else:
        targets = {"acoustic_codes": sample["target_audio_ids"], "speaker_embeds": np.ones(512)}
        if name != "vc":
            targets["us_codes"] = sample["audio_ids" if name == "tts" else "answer_ids"]
    return {"task": name, "targets": targets, **{field: given[field] for field in task.fields}}


def released_masks(name, attention_mask, prompt_mask):
    """The released question and answer masks follow from the prompt mask; only TTS and VC have them."""
    if name in ("tts", "vc"):
        return attention_mask * prompt_mask, attention_mask * (1 - prompt_mask)
    return attention_mask, attention_mask


def check_against(prefix, name, row, tensors, meta):
    check(row["input_ids"], f"{prefix}.input_ids", tensors, meta)
    check(row["labels"], f"{prefix}.labels", tensors, meta)
    check(row["attention_mask"], f"{prefix}.attention_mask", tensors, meta)
    question, answer = released_masks(name, row["attention_mask"], row["prompt_mask"])
    check(question, f"{prefix}.question_mask", tensors, meta)
    check(answer, f"{prefix}.answer_mask", tensors, meta)
    acoustic = tensors[f"{prefix}.acoustic_ids"][..., 1:]  # the start id is added by the model
    pad = meta["config"]["acoustic"]["pad_token_id"]
    assert torch.equal(row["acoustic_labels"], acoustic.masked_fill(acoustic == pad, -100))


@pytest.mark.parametrize("name", NAMES)
def test_rows_equal_the_released_ones(released, name):
    processor, tensors, meta = released
    for i, sample in enumerate(meta["samples"]):
        batch = processor(**arguments(name, sample))
        prefix = f"{name.upper()}.{i}"
        check_against(prefix, name, {key: value[0] for key, value in batch.items()}, tensors, meta)
        check(batch["task_type_ids"], f"{prefix}.task_id", tensors, meta)
        assert int(not batch["speaker_embeds"].any()) == int(tensors[f"{prefix}.speaker_is_zero"])


@pytest.mark.parametrize("name", NAMES)
def test_batches_equal_the_released_ones(released, name):
    processor, tensors, meta = released
    examples = [processor.build_example(**arguments(name, sample)) for sample in meta["samples"]]
    check_against(f"{name.upper()}.batch", name, processor.pad(examples), tensors, meta)


@pytest.mark.parametrize("name", NAMES)
def test_generation_prompts_are_the_masked_part_of_training_rows(released, name):
    processor, _, meta = released
    for sample in meta["samples"]:
        inputs = arguments(name, sample)
        row = processor(**inputs)
        inputs.pop("targets")
        if TASKS[name].output == "speech":
            inputs["speaker"] = np.ones(512)
        prompt = processor(**inputs)["input_ids"][0]
        assert torch.equal(prompt, row["input_ids"][0][row["prompt_mask"][0].bool()])


@pytest.mark.parametrize("name", NAMES)
def test_the_length_limit(released, name):
    # The released code drops rows of `limit` ids and more; `max_length = limit - 1` refuses the same rows.
    processor, tensors, meta = released
    inputs = arguments(name, meta["samples"][0])
    length = len(processor.build_example(**inputs)["input_ids"])
    for limit, dropped in zip(
        (length - 1, length, length + 1), tensors[f"{name.upper()}.dropped_at_limit"], strict=True
    ):
        if dropped:
            with pytest.raises(ValueError, match=rf"row 0 \({name}\) has {length} ids; `max_length` is {limit - 1}"):
                processor.build_example(**inputs, max_length=limit - 1)
        else:
            assert len(processor.build_example(**inputs, max_length=limit - 1)["input_ids"]) == length


def builder_of(kind, size=16):
    tokenizer = tiny_tokenizer(kind, size)
    return SequenceBuilder(tokenizer, speech_token_ids(tokenizer, size))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["metaspace", "metaspace_first"])
def test_special_speech_tokens_give_the_released_tokens(released, kind, name):
    # Our speech tokens are special ones, around which Llama tokenizers set marks that the released rows do not have.
    _, _, meta = released
    builder = builder_of(kind)
    for i, sample in enumerate(meta["samples"]):
        inputs = arguments(name, sample)
        targets = inputs["targets"]
        answer = targets if isinstance(targets, str) else targets.get("us_codes", inputs.get("audio"))
        ids = builder.example(TASKS[name], inputs, answer)["input_ids"]
        text = "".join(builder.tokenizer.convert_ids_to_tokens(ids))
        assert text == "".join(meta["decoded"][f"{name.upper()}.{i}"])


@pytest.mark.parametrize("name", NAMES)
def test_byte_level_rows_have_no_bos_and_no_marks(released, name):
    _, _, meta = released
    builder, sample = builder_of("byte_level"), meta["samples"][1]
    row = builder.example(TASKS[name], arguments(name, sample), "yes")
    text = builder.tokenizer.decode(row["input_ids"])
    question, _ = meta["strings"][f"{name.upper()}.1"]
    expected = question.replace(" <a", "<a").replace(" </a", "</a")
    assert text == f"{expected}yes<|endoftext|>"
    assert row["input_ids"][-1] == 0 and row["labels"][:-4] == [-100] * (len(row["labels"]) - 4)


def test_a_tokenizer_that_merges_across_the_anchor(monkeypatch):
    builder = builder_of("metaspace")
    whole = builder._tokenize
    merging = {"a\n": [7], "A\n": [7]}
    monkeypatch.setattr(builder, "_tokenize", lambda text: merging.get(text, whole(text)))
    assert builder.text("\n", continuation=True) == whole("0\n")[len(whole("0")) :]
    merging["0\n"] = [7]
    with pytest.raises(ValueError, match="`tokenizer` merges letters"):
        builder.text("\n", continuation=True)


@pytest.mark.parametrize("kind", ["metaspace", "metaspace_first", "byte_level"])
@pytest.mark.parametrize("typed", ["say <a_3> now", "<audio>", "</audio>x"])
def test_text_must_not_spell_speech_tokens(kind, typed):
    builder = builder_of(kind)
    for task, fields in (("tts", {"text": typed}), ("sqa", {"audio": [1], "question": typed})):
        with pytest.raises(ValueError, match=r"must not contain the speech token '<"):
            builder.prompt(TASKS[task], fields)
    with pytest.raises(ValueError, match="must not contain the speech token"):
        builder.answer(typed)
    assert builder.text("<a_99> <audi>")  # no tokens of this codebook


@pytest.mark.parametrize(("kind", "token"), [("metaspace", "</s>"), ("metaspace_first", "<s>"), ("byte_level", None)])
def test_text_must_not_spell_special_tokens(kind, token):
    builder, token = builder_of(kind), token or "<|endoftext|>"
    message = re.escape(f"text must not contain the special token {token!r}")
    with pytest.raises(ValueError, match=message):
        builder.answer(f"a{token}b")
    for task, fields in (("tts", {"text": f"a {token}"}), ("sqa", {"audio": [1], "question": token})):
        with pytest.raises(ValueError, match=message):
            builder.prompt(TASKS[task], fields)
    builder.tokenizer.split_special_tokens = True
    assert builder.tokenizer.eos_token_id not in builder.text(f"a{token}b")


def test_added_special_tokens_and_unknown_characters():
    tokenizer = tiny_tokenizer(codebook_size=4)
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)  # not among `all_special_tokens`
    tokenizer.add_tokens(["<think>"])
    builder = SequenceBuilder(tokenizer, speech_token_ids(tokenizer, 4))
    for typed in ("hi <|user|>", "<unk>"):
        with pytest.raises(ValueError, match="must not contain the special token '<"):
            builder.text(typed)
    assert tokenizer.unk_token_id in builder.text("\u4f60") and builder.text("<think>")


def test_an_end_of_sequence_token_is_needed():
    tokenizer = tiny_tokenizer(codebook_size=4)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        SequenceBuilder(tokenizer, speech_token_ids(tokenizer, 4))


def test_acoustic_labels():
    single, several = AcousticTargets(8, 1, 9, 11), AcousticTargets(8, 2, 9, 11)
    assert single.labels([3, 0, 7]) == [3, 0, 7, 11]
    assert single.labels(torch.tensor([5])) == [5, 11]
    assert single.labels(None) == [9, 11]
    assert several.labels(np.array([[1, 2], [3, 4], [5, 6]])) == [[1, 2], [3, 4], [5, 6], [11, 11]]
    assert several.labels(None) == [[9, 9], [11, 11]]


@pytest.mark.parametrize(
    ("books", "codes", "message"),
    [
        (1, [], r"shape \[0\]; accepted is \[codes\], not empty"),
        (1, [[1], [2]], r"shape \[2, 1\]; accepted is \[codes\]"),
        (2, [1, 2], r"shape \[2\]; accepted is \[positions, 2\]"),
        (2, [[1, 2, 3]], r"shape \[1, 3\]; accepted is \[positions, 2\]"),
        (1, [0, 8], "holds 8; accepted are the codes 0 to 7"),
        (1, [-1, 2], "holds -1; accepted are the codes 0 to 7"),
        (1, [0.5], "must be whole numbers, got float64"),
    ],
)
def test_bad_acoustic_codes(books, codes, message):
    with pytest.raises(ValueError, match=message):
        AcousticTargets(8, books, 9, 11).labels(codes)


ROWS = [
    {
        "input_ids": [1, 2, 3],
        "labels": [-100, 2, 3],
        "prompt_mask": [1, 0, 0],
        "acoustic_labels": [9, 11],
        "task_type_ids": 1,
    },
    {
        "input_ids": [4, 5],
        "labels": [-100, 5],
        "prompt_mask": [1, 0],
        "acoustic_labels": [1, 2, 11],
        "task_type_ids": 2,
        "speaker_embeds": [0.5, 1.0],
        "file": "other columns",
    },
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    batch = pad_examples(ROWS, pad_token_id=0, speaker_embedding_size=2, padding_side=side, return_tensors="pt")

    def padded(row, value):
        return [value, *row] if side == "left" else [*row, value]

    assert batch["input_ids"].tolist() == [[1, 2, 3], padded([4, 5], 0)]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], padded([1, 1], 0)]
    assert batch["labels"].tolist() == [[-100, 2, 3], padded([-100, 5], -100)]
    assert batch["prompt_mask"].tolist() == [[1, 0, 0], padded([1, 0], 0)]
    assert batch["acoustic_labels"].tolist() == [[9, 11, -100], [1, 2, 11]]
    assert batch["speaker_embeds"].tolist() == [[0, 0], [0.5, 1]] and batch["speaker_embeds"].dtype == torch.float32
    assert batch["task_type_ids"].tolist() == [1, 2] and "file" not in batch


def test_padding_several_codebooks_and_lengths():
    rows = [
        {"input_ids": [1], "task_type_ids": 2, "acoustic_labels": labels} for labels in ([[1, 2]], [[3, 4], [5, 6]])
    ]
    batch = pad_examples(rows, pad_token_id=7, speaker_embedding_size=None, pad_to_multiple_of=4)
    assert batch["acoustic_labels"].tolist() == [[[1, 2], [-100, -100]], [[3, 4], [5, 6]]]
    assert batch["input_ids"].tolist() == [[1, 7, 7, 7]] * 2 and "speaker_embeds" not in batch
    fixed = pad_examples(rows, pad_token_id=7, speaker_embedding_size=None, padding="max_length", max_length=6)
    assert fixed["attention_mask"].shape == (2, 6)
    lists = pad_examples(ROWS, pad_token_id=0, speaker_embedding_size=2, padding=False, return_tensors=None)
    assert lists["input_ids"] == [[1, 2, 3], [4, 5]] and lists["acoustic_labels"] == [[9, 11], [1, 2, 11]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "`examples` is empty"),
        (ROWS, {"padding_side": "both"}, "`padding_side` is 'both'; accepted are 'left' and 'right'"),
        (ROWS, {"padding": "most"}, "`padding` is 'most'"),
        (ROWS, {"padding": "max_length"}, "needs `max_length`"),
        (ROWS, {"max_length": 2}, "a row has 3 ids; `max_length` is 2, and rows are never cut"),
        ([ROWS[0], {"input_ids": [1], "task_type_ids": 1}], {}, "1 of 2 rows have `labels`; all or none"),
    ],
)
def test_bad_padding(rows, options, message):
    with pytest.raises(ValueError, match=message):
        pad_examples(rows, pad_token_id=0, speaker_embedding_size=2, **options)
