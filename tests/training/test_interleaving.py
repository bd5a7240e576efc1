"""Documents: lengths and places of chunks, texts of words, draws that do not depend on the order of rows."""

import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest

from dualspeech.training.data_steps.interleaving import (
    ChunkAndInterleave,
    FilterByScore,
    TextDocuments,
    UnsupervisedDocuments,
    cut_times,
)
from dualspeech.training.data_steps.row_recordings import read_recording
from dualspeech.training.data_steps.step import Rejection, apply_step
from tests.tiny import tone

RATE = 8000


def spoken_row(source, num_words=60, seed=0):
    """Words of 0.2 to 0.6 s with pauses, in a recording whose samples count up."""
    draw, words, time = random.Random(seed), [], 0.3
    for number in range(num_words):
        length = draw.uniform(0.2, 0.6)
        words.append({"text": f"w{number}", "start": time, "end": time + length})
        time += length + draw.uniform(0.0, 0.2)
    samples = (np.arange(round((time + 0.5) * RATE)) % 20000 / 32768).astype(np.float32)
    text = "  ".join(word["text"] for word in words)
    return {"audio": (samples, RATE), "words": words, "text": text, "source": source, "metadata": {"a": 1}}


def test_cuts():
    boundaries = [i / 2 for i in range(1, 200)]
    for seed in range(20):
        cuts = cut_times(boundaries, 100.0, 3.0, 6.0, random.Random(seed))
        lengths = np.diff([0.0, *cuts])
        assert cuts[-1] == 100.0 and set(cuts[:-1]) <= set(boundaries)
        assert lengths.min() >= 3.0 and lengths.max() <= 6.0
    lengths = np.diff([0.0, *cut_times(boundaries * 1, 100.0, 3.0, 6.0, random.Random(0))])
    assert len(set(lengths.tolist())) > 3
    # uniform: the mean of many chunks is 4.5 s
    many = cut_times([i / 10 for i in range(1, 100_000)], 10_000.0, 3.0, 6.0, random.Random(0))
    assert np.diff(many).mean() == pytest.approx(4.5, abs=0.1)
    # short recordings, and boundaries that do not come in time
    assert cut_times([1.0, 2.0], 5.9, 3.0, 6.0, random.Random(0)) == [5.9]
    assert cut_times([9.0, 9.5], 20.0, 3.0, 6.0, random.Random(0)) == [9.0, 20.0]
    assert cut_times([], 20.0, 3.0, 6.0, random.Random(0)) == [20.0]
    # a boundary shortly before the range, and what follows it is far off
    assert cut_times([2.9], 20.0, 3.0, 6.0, random.Random(0)) == [2.9, 20.0]
    assert cut_times([0.5, 6.5], 20.0, 3.0, 6.0, random.Random(0)) == [6.5, 20.0]


def test_cuts_leave_a_rest_that_can_be_divided():
    for seed in range(50):
        # Only the first boundary leads to an end within the range.
        assert cut_times([3.5, 5.0, 7.0, 10.6], 12.5, 3.0, 6.0, random.Random(seed)) == [3.5, 7.0, 12.5]
    for seed in range(200):
        draw = random.Random(seed)
        boundaries = list(itertools.accumulate(draw.uniform(0.3, 1.2) for _ in range(60)))
        duration = boundaries[-1] + 0.5
        lengths = np.diff([0.0, *cut_times(boundaries, duration, 3.0, 6.0, draw)])
        assert lengths.min() >= 3.0 - 1e-9 and lengths.max() <= 6.0 + 1e-9


@pytest.mark.parametrize("storage", [None, "files"])
@pytest.mark.parametrize("with_text", [True, False])
def test_chunks_are_the_whole_recording(storage, with_text, tmp_path):
    row = spoken_row("a:1")
    if not with_text:
        del row["text"]
    step = ChunkAndInterleave(storage=str(tmp_path) if storage else None)
    kinds = Counter()
    for seed in range(8):
        step.seed = seed
        ((document,),) = step.process([row])
        assert document["source"] == "a:1" and document["metadata"] == {"a": 1}
        assert set(document) == {"chunks", "source", "metadata"}
        spoken, written, position = 0, [], 0
        for chunk in document["chunks"]:
            kinds[chunk["type"]] += 1
            if chunk["type"] == "text":
                words = chunk["text"].split()
                written += words
                # the sound of these words follows where their neighbours end
                position = None
                continue
            samples, rate = read_recording({"audio": chunk.get("audio") or chunk["path"]})
            assert rate == RATE and 3.0 - 1e-3 <= len(samples) / RATE <= 6.0 + 1e-3
            first = round(float(samples[0]) * 32768)
            if position is not None:
                assert abs(first - position) <= 2  # no gap between neighbours, but for rounding
            position = (first + len(samples)) % 20000
            spoken += len(samples)
        assert len(set(written)) == len(written)
        assert written == sorted(written, key=lambda word: int(word[1:]))
        # words of texts and of sound make up all of them
        duration = len(row["audio"][0]) / RATE
        assert 0 < spoken / RATE < duration or not written or not spoken
    assert 0.3 < kinds["audio"] / kinds.total() < 0.7


def test_audio_and_text_share_the_words():
    """All text and all audio are the same document; a chunk that is text leaves out exactly its sound."""
    row = spoken_row("a:1")
    texts = ChunkAndInterleave(audio_probability=0.0).process([row])[0][0]["chunks"]
    sounds = ChunkAndInterleave(audio_probability=1.0).process([row])[0][0]["chunks"]
    assert len(texts) == len(sounds) > 3
    joined = "".join(chunk["text"] for chunk in texts)
    assert joined == row["text"]
    samples = np.concatenate([read_recording(chunk)[0] for chunk in sounds])
    assert len(samples) == len(row["audio"][0])
    ends = np.cumsum([len(read_recording(chunk)[0]) for chunk in sounds]) / RATE
    counts = np.cumsum([len(chunk["text"].split()) for chunk in texts])
    for end, count in zip(ends[:-1], counts[:-1], strict=True):
        words = row["words"]
        assert words[count - 1]["end"] - 1e-3 <= end <= words[count]["start"] + 1e-3


def test_rules():
    row = spoken_row("a:1", 120)
    (document,) = ChunkAndInterleave(rule="alternating").process([row])[0]
    kinds = [chunk["type"] for chunk in document["chunks"]]
    assert len(kinds) > 5 and all(a != b for a, b in itertools.pairwise(kinds))
    first = {
        ChunkAndInterleave(rule="alternating", seed=seed).process([row])[0][0]["chunks"][0]["type"]
        for seed in range(9)
    }
    assert first == {"audio", "text"}
    (document,) = ChunkAndInterleave(merge_neighbours=True).process([row])[0]
    kinds = [chunk["type"] for chunk in document["chunks"]]
    assert all(a != b for a, b in itertools.pairwise(kinds))
    (document,) = ChunkAndInterleave(merge_neighbours=True, audio_probability=0.0).process([row])[0]
    assert [chunk["text"] for chunk in document["chunks"]] == [row["text"]]


def test_order_and_batches_do_not_matter():
    rows = [spoken_row(f"a:{i}", seed=i) for i in range(6)]
    step = pickle.loads(pickle.dumps(ChunkAndInterleave(seed=3)))
    forward, backward = step.process(rows), step.process(rows[::-1])[::-1]
    assert forward == backward == [step.process([row])[0] for row in rows]
    assert ChunkAndInterleave(seed=4).process(rows) != forward
    kinds = [tuple(chunk["type"] for chunk in made[0]["chunks"]) for made in forward]
    assert len(set(kinds)) > 1


def test_chinese_has_no_spaces():
    words = [{"text": text, "start": i * 1.0, "end": i + 0.9} for i, text in enumerate("今天天气很好，我们走吧")]
    row = {"audio": (np.zeros(12 * RATE, np.float32) + 0.1, RATE), "words": words, "text": "今天天气很好，我们走吧"}
    (document,) = ChunkAndInterleave(audio_probability=0.0).process([row])[0]
    assert len(document["chunks"]) > 1
    assert "".join(chunk["text"] for chunk in document["chunks"]) == row["text"]


def test_bad_rows_and_settings():
    good = spoken_row("a:1")
    backwards = {**good, "words": good["words"][::-1]}
    outcomes = apply_step(
        ChunkAndInterleave(),
        [
            {**good, "words": []},
            {**good, "words": None},
            backwards,
            {**good, "text": "other words"},
            {**good, "audio": (good["audio"][0][:RATE], RATE)},
            {**good, "words": [{"text": "a"}]},
            {**good, "words": [{"text": "a", "start": "0.1", "end": "0.2"}]},
            {**good, "words": [{"text": 1, "start": 0.1, "end": 0.2}]},
            {**good, "words": 3},
            {**good, "text": 3},
            good,
        ],
    )
    expected = ["is empty", "no `words`", "is not behind", "does not follow", "not within 1.0 s", "must hold mappings"]
    expected += ["'start' and 'end' numbers", "'text' must be a text", "a list of words", "must be a text, got 3"]
    for outcome, message in zip(outcomes, expected, strict=False):
        assert isinstance(outcome, Rejection) and message in outcome.reason, outcome
    assert not isinstance(outcomes[-1], Rejection)
    for wrong in ({"rule": "other"}, {"audio_probability": 1.5}, {"min_seconds": 7.0}, {"min_seconds": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ChunkAndInterleave(**wrong)


def test_unsupervised_documents():
    row = {"audio": (tone(2.0), 16000), "text": "x", "source": "a:1", "id": "b"}
    step = UnsupervisedDocuments(min_seconds=1.0, max_seconds=3.0)
    short, made, long = apply_step(step, [{"audio": (tone(0.5), 16000)}, row, {"audio": (tone(3.5), 16000)}])
    assert made == [{"chunks": [{"type": "audio", "audio": row["audio"]}], "source": "a:1", "id": "b"}]
    assert "0.50 s" in short.reason and "3.50 s" in long.reason


def test_text_documents():
    rows = [
        {"text": "good", "score": 3.0, "id": "a"},
        {"text": "better", "score": 4},
        {"text": "worse", "score": 2.99},
        {"text": "unknown"},
        {"text": "odd", "score": "4"},
        {"text": " ", "score": 5},
        {"text": "none", "score": float("nan")},
    ]
    outcomes = apply_step(TextDocuments(), rows)
    assert outcomes[0] == [{"chunks": [{"type": "text", "text": "good"}], "id": "a"}]
    assert outcomes[1][0]["chunks"][0]["text"] == "better"
    assert all(isinstance(outcome, Rejection) for outcome in outcomes[2:])
    assert outcomes[2].reason == "the score `score` is 2.99; `min_score` is 3.0"
    nested = TextDocuments(score_key="metadata.quality", min_score=1)
    made, rejected = apply_step(nested, [{"text": "a", "metadata": {"quality": 1}}, {"text": "a", "metadata": None}])
    assert made[0]["metadata"] == {"quality": 1} and "must be a number" in rejected.reason
    assert len(apply_step(TextDocuments(min_score=None), rows[:4])[3]) == 1
    kept = apply_step(FilterByScore(), rows)
    assert [outcome[0] for outcome in kept[:2]] == rows[:2] and kept[2:5] == outcomes[2:5]
    assert kept[5] == [rows[5]]  # the text is not its business
