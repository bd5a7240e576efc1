"""What is tested is in no training: frames, sentences in four languages, recordings, voices, takes of human digits."""

import re

import pytest
from nano_audio import TEST_SPEAKER, TEST_TAKES, Utterance
from nano_grammar import SPLITS, draw_frames
from nano_lexicon import LANGUAGES
from nano_rows import ASKED, ROW_FILES, TRANSLATED
from nano_voices import UNSEEN_VOICES, VOICES

from .corpora import all_rows, fake_takes, keys, recordings, strings, texts

HELD_OUT = ("validation", "test")


@pytest.fixture(scope="module", params=[0.02, pytest.param(1.0, marks=pytest.mark.slow)], ids=["small", "full"])
def corpus(request):
    """Split -> (`Rows`, rows by file)."""
    return {split: all_rows(split, request.param, takes=fake_takes()) for split in SPLITS}


def rows_of(corpus, split):
    return [row for rows in corpus[split][1].values() for row in rows]


def frames_of(corpus, split):
    """The frames that the rows of a split are made of: by the pools of `Rows`, and drawn again for the others."""
    rows = corpus[split][0]
    drawn = [frame for _, frame in [*rows.sentences, *rows.contents]]
    drawn += draw_frames(split, rows.sizes["emotions"], 3, TRANSLATED)
    return {frame.key: frame for frame in [*drawn, *draw_frames(split, rows.sizes["chats"], 4, ASKED)]}


def test_frames_of_the_splits_are_disjoint(corpus):
    named = {split: set().union(*map(keys, rows_of(corpus, split))) for split in SPLITS}
    assert all(named.values())
    assert not named["train"] & named["validation"]
    assert not named["train"] & named["test"]
    assert not named["validation"] & named["test"]
    for split in SPLITS:
        frames = frames_of(corpus, split)
        assert named[split] == frames.keys()
        assert {frame.split for frame in frames.values()} == {split}


def test_rows_name_their_frame(corpus):
    """All but recordings, transcripts and human digits, which have no frame of their own."""
    for split in SPLITS:
        for name in set(ROW_FILES) - {"recordings", "transcripts", "chat_transcripts"}:
            for row in corpus[split][1][name]:
                assert keys(row) or row["metadata"]["voice"].startswith("human_")


def test_no_sentence_of_a_test_is_in_a_training_text(corpus):
    """In any language. Strings of digits are looked at below."""
    trained = "\n".join(set().union(*map(texts, rows_of(corpus, "train"))))
    for split in HELD_OUT:
        for frame in frames_of(corpus, split).values():
            for language in LANGUAGES if frame.kind != "digits" else ():
                text = frame.text(language)
                assert text not in trained, (split, language, text)
                assert text[0].lower() + text[1:] not in trained


def test_digits_of_a_test_are_in_no_training_frame(corpus):
    """As frames. People say strings that are drawn freely: of those the takes are held out."""
    spoken = {
        row["targets"]
        for row in rows_of(corpus, "train")
        if row.get("task") == "asr" and not row["metadata"]["voice"].startswith("human_")
    }
    for split in HELD_OUT:
        said = {frame.text() for frame in frames_of(corpus, split).values() if frame.kind == "digits"}
        assert all(len(text.split()) >= 3 for text in said)
        assert not said & spoken


PHRASE = re.compile(r"(Who|What|Where|When|How many) [\w ]+\?|([A-Z]\w*)( \w+){0,3}\.")
VERBS_OF_SENTENCES = re.compile(
    r" (buys|sees|finds|brings|sells|wants|has|paints|washes|carries|is) .*\.|^Where is the \w+ \w+\?$"
)


def test_only_phrases_and_references_are_recorded_for_several_splits(corpus):
    recorded = {split: {utterance.path: utterance for utterance in corpus[split][0].utterances} for split in SPLITS}
    references = {
        Utterance(frame.text(), voice).path
        for voice, frames in corpus["train"][0].references.items()
        for frame in frames
    }
    for split in HELD_OUT:
        shared = recorded[split].keys() & recorded["train"].keys() - references
        for path in shared:
            text = recorded[split][path].text
            assert PHRASE.fullmatch(text) and not VERBS_OF_SENTENCES.search(text), text
            assert not recorded[split][path].variant


def test_what_is_understood_in_a_test_was_not_heard_in_training(corpus):
    """The content of every row; what `chat_transcripts` say is looked at by its text above."""
    heard = {path for row in rows_of(corpus, "train") for path in recordings(row)}
    for split in HELD_OUT:
        for name in ("asr", "s2tt", "ser", "sqa", "vc", "sc"):
            for row in corpus[split][1][name]:
                assert row["audio"].removeprefix("../../") not in heard
        for name in ("documents", "chat_transcripts"):
            assert not {path for row in corpus[split][1][name] for path in recordings(row)} & heard


def test_questions_and_digit_strings_of_a_test_are_new(corpus):
    """A question is new in the voice that asks it, and a string of three or more digits in any voice."""
    asked = {(u.text, u.voice) for u in corpus["train"][0].utterances}
    for split in HELD_OUT:
        rows, by_file = corpus[split]
        said = {utterance.path: utterance for utterance in rows.utterances}
        for row in by_file["sc"]:
            question = said[row["question"].removeprefix("../../")]
            assert question.text == row["metadata"]["question_text"] and (question.text, question.voice) not in asked
        strings = {digits for digits in rows.digits if len(digits.split()) > 2}
        assert strings and not strings & corpus["train"][0].digits


def test_references_are_training_sentences_of_the_voice_that_speaks(corpus):
    for split in SPLITS:
        rows, by_file = corpus[split]
        assert {frame.split for frames in rows.references.values() for frame in frames} == {"train"}
        assert rows.references.keys() == VOICES.keys()
        others = {path for name, made in by_file.items() if name != "recordings" for row in made for path in recordings({**row, "speaker": ""})}  # fmt: skip
        for name in ("tts", "t2st", "vc", "sc"):
            for row in by_file[name]:
                voice = row["metadata"]["voice"]
                accepted = {Utterance(frame.text(), voice).path for frame in rows.references[voice]}
                assert row["speaker"].removeprefix("../../") in accepted
                assert row["targets"]["audio"].split("/")[-2] == voice
                assert row["speaker"].removeprefix("../../") not in others
    assert corpus["train"][0].references == corpus["test"][0].references


def test_unseen_voices_are_heard_in_tests_only(corpus):
    for split in ("train", "validation"):
        assert not {utterance.voice for utterance in corpus[split][0].utterances} & UNSEEN_VOICES.keys()
    heard = {row["metadata"]["voice"] for row in corpus["test"][1]["asr"]}
    assert heard >= UNSEEN_VOICES.keys()
    for name in set(ROW_FILES) - {"asr", "transcripts"}:
        assert not {row["metadata"].get("voice") for row in corpus["test"][1][name]} & UNSEEN_VOICES.keys()


def test_takes_of_human_digits_are_held_out(corpus):
    takes = {}
    for split in SPLITS:
        for utterance in corpus[split][0].utterances:
            if utterance.voice.startswith("human_"):
                takes.setdefault(split, set()).update(utterance.text.split())
    assert takes.keys() == SPLITS.keys()
    assert not takes["train"] & takes["validation"]
    assert not takes["train"] & takes["test"]
    assert not takes["validation"] & takes["test"]
    for split in ("train", "validation"):
        for stem in takes[split]:
            _, speaker, take = stem.split("_")
            assert speaker != TEST_SPEAKER and int(take) not in TEST_TAKES
    for stem in takes["test"]:
        _, speaker, take = stem.split("_")
        assert speaker == TEST_SPEAKER or int(take) in TEST_TAKES
    parts = [row["metadata"].get("takes") for row in corpus["test"][1]["asr"]]
    assert parts.count("unseen") == parts.count("known") > 0


def test_only_training_is_degraded(corpus):
    for split in HELD_OUT:
        assert not [utterance for utterance in corpus[split][0].utterances if utterance.variant]
    assert [utterance for utterance in corpus["train"][0].utterances if utterance.variant]


def test_helpers_see_every_string_of_a_row():
    row = {"audio": "../../audio/us/a.wav", "targets": "x", "metadata": {"frame": "k", "text": "y"}}
    assert set(strings(row)) == {"../../audio/us/a.wav", "x", "k", "y"}
    assert texts(row) == {"x", "y"} and keys(row) == {"k"} and recordings(row) == {"audio/us/a.wav"}
