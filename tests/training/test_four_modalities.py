"""Chats in all pairs of modalities, as the processor reads them."""

import pickle

import pytest

from dualspeech.processing.moss_speech_chat import SYSTEM_PROMPTS, parse_conversations
from dualspeech.training.data_steps.four_modalities import FourModalities
from dualspeech.training.data_steps.step import Rejection, apply_step

ROW = {
    "question": "What is it?",
    "answer": "A house.",
    "question_audio": "question.flac",
    "answer_audio": {"bytes": b"fLaC"},
    "source": "qa:1",
    "metadata": {"a": 1},
}


def test_four_chats_with_the_same_content():
    step = pickle.loads(pickle.dumps(FourModalities()))
    (chats,) = step.process([ROW])
    assert [chat["id"] for chat in chats] == [
        "qa:1-speech-to-speech",
        "qa:1-speech-to-text",
        "qa:1-text-to-speech",
        "qa:1-text-to-text",
    ]
    for chat in chats:
        assert set(chat) == {"messages", "output_modality", "id", "source", "metadata"}
        assert chat["source"] == "qa:1" and chat["metadata"] == {"a": 1}
        (turns,) = parse_conversations([chat["messages"]])
        system, question, answer = (turn.content for turn in turns)
        assert [turn.role for turn in turns] == ["system", "user", "assistant"]
        assert system.text == SYSTEM_PROMPTS[chat["output_modality"]]
        assert (question.text, question.audio) in [("What is it?", None), (None, "question.flac")]
        assert (answer.text, answer.audio) in [("A house.", None), (None, {"bytes": b"fLaC"})]
        assert answer.modality == chat["output_modality"]
        assert chat["id"].endswith({"audio": "speech", "text": "text"}[answer.modality])
        assert f"-{ {'audio': 'speech', 'text': 'text'}[question.modality] }-to-" in chat["id"]


def test_some_pairs():
    row = {name: ROW[name] for name in ("question", "answer", "question_audio")}
    (chats,) = FourModalities(pairs=[("audio", "text"), ("text", "text")]).process([row])
    assert [chat["output_modality"] for chat in chats] == ["text", "text"]
    (chats,) = FourModalities(pairs=[["text", "audio"]], system_prompts={"audio": "Sing."}).process([ROW])
    assert chats[0]["messages"][0]["content"] == {"type": "text", "text": "Sing."}
    (outcome,) = apply_step(FourModalities(), [row])
    assert isinstance(outcome, Rejection) and "no `answer_audio`" in outcome.reason


def test_wrong_settings():
    for pairs in ([], [("audio",)], [("audio", "video")]):
        with pytest.raises(ValueError, match="`pairs`"):
            FourModalities(pairs=pairs)
    with pytest.raises(ValueError, match="`system_prompts`"):
        FourModalities(system_prompts={"text": "a"})
