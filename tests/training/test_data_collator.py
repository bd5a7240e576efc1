"""Batches of rows that a data set stores."""

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from dualspeech import DualSpeechConfig
from dualspeech.training.data_collator import DualSpeechDataCollator
from tests.tiny import tiny_processor


def rows(processor):
    return [
        processor.build_example(task="asr", audio=[1, 2, 3], targets="yes it is"),
        processor.build_example(
            "hello there", task="tts", speaker=np.ones(12), targets={"us_codes": [4, 5], "acoustic_codes": [6, 7, 8]}
        ),
        processor.build_example(task="ser", audio=[9], targets="glad"),
    ]


def test_the_batch_is_the_padded_rows():
    processor = tiny_processor()
    batch = DualSpeechDataCollator(processor)(rows(processor))
    expected = processor.pad(rows(processor), padding_side="right")
    assert type(batch) is dict and batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert batch["attention_mask"][:, 0].all() and batch["speaker_embeds"].any(1).tolist() == [False, True, False]


def test_rows_survive_a_data_set():
    processor = tiny_processor()
    collator = DualSpeechDataCollator(processor, pad_to_multiple_of=8)
    stored = Dataset.from_list([{**row, "file": str(i)} for i, row in enumerate(rows(processor))])
    (batch,) = DataLoader(stored, batch_size=3, collate_fn=collator)
    expected = collator(rows(processor))
    assert all(torch.equal(batch[name], expected[name]) for name in expected) and "file" not in batch
    assert batch["input_ids"].shape[1] % 8 == 0 and batch["labels"].shape == batch["input_ids"].shape
    # Every batch has the same entries, whatever tasks it holds.
    for batch in DataLoader(stored, batch_size=1, collate_fn=collator):
        assert batch.keys() == expected.keys()


def test_several_codebooks():
    processor = tiny_processor(num_acoustic_codebooks=2)
    spoken = processor.build_example(
        "hello", task="tts", speaker=np.ones(12), targets={"us_codes": [4], "acoustic_codes": [[1, 2], [3, 4]]}
    )
    batch = DualSpeechDataCollator(processor)([spoken, rows_of_text(processor)])
    assert batch["acoustic_labels"].tolist() == [[[1, 2], [3, 4], [67, 67]], [[65, 65], [67, 67], [-100, -100]]]


def rows_of_text(processor):
    return processor.build_example(task="asr", audio=[1], targets="yes")


def test_a_model_is_checked_at_once_and_not_kept():
    processor = tiny_processor()
    config = DualSpeechConfig(
        text_config={"model_type": "llama", "vocab_size": 140, "hidden_size": 8, "num_attention_heads": 2},
        acoustic_config={"codebook_size": 64, "hidden_size": 8, "num_attention_heads": 2},
        audio_start_token_id=108,
        audio_end_token_id=109,
        semantic_token_offset=110,
        semantic_codebook_size=24,
        speaker_embedding_size=12,
    )
    collator = DualSpeechDataCollator(processor, model=config)
    assert config not in vars(collator).values()
    collator = pickle.loads(pickle.dumps(collator))  # as a data loader that spawns its workers does
    assert collator(rows(processor))["input_ids"].equal(
        DualSpeechDataCollator(processor)(rows(processor))["input_ids"]
    )
    config.semantic_token_offset = 111
    with pytest.raises(ValueError, match="differ in `semantic_token_offset`: processor 110, model 111"):
        DualSpeechDataCollator(processor, model=config)


def test_rows_that_cannot_be_trained_on():
    processor = tiny_processor()
    with pytest.raises(ValueError, match=r"must have labels for training, got a row with .'input_ids'"):
        DualSpeechDataCollator(processor)([processor.build_example(task="asr", audio=[1])])
    with pytest.raises(ValueError, match="`max_length` is 20, and rows are never cut"):
        DualSpeechDataCollator(processor, max_length=20)(rows(processor))
