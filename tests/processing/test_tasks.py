"""The eight tasks: their prompts, ids, outputs and what they accept."""

import pytest

from dualspeech.configuration.configuration_dualspeech import SPEECH_TASKS, TASK_IDS
from dualspeech.processing.tasks import TASK_NAMES, TASKS, SpeechSlot, get_task
from tests.fixture_checks import load

GOOD = {
    "audio": [1, 2],
    "question": "who?",
    "text": "hello",
    "source_language": "English",
    "target_language": "German",
}


def fields_of(task):
    return {name: [3] if name in task.speech_fields else GOOD[name] for name in task.fields}


def test_there_are_eight_tasks_with_the_released_numbers():
    assert {name: task.id for name, task in TASKS.items()} == TASK_IDS
    assert {name for name, task in TASKS.items() if task.output == "speech"} == set(SPEECH_TASKS)
    assert {name: number for number, name in TASK_NAMES.items()} == TASK_IDS


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_the_released_strings(name, sample):
    _, _, meta = load("dualspeech_layouts")
    values, task = meta["samples"][sample], TASKS[name]

    def spoken(codes):
        return " ".join(["<audio>", *(f"<a_{code}>" for code in codes), "</audio>"])

    given = {
        "audio": values["audio_ids"],
        "question": values["question_ids"] if name == "sc" else values["question"],
        "text": values["input_text"] if name == "t2st" else values["text"],
        "source_language": values["source_language"],
        "target_language": values["target_language"],
    }
    # The released strings have a space in front of speech, which leaves no mark in the ids.
    parts = [f" {spoken(given[p.field])}" if isinstance(p, SpeechSlot) else p for p in task.parts(given)]
    assert "".join(parts) == meta["strings"][f"{name.upper()}.{sample}"][0]


def test_text_is_filled_in_as_it_is():
    (prompt,) = TASKS["tts"].parts({"text": "{audio} 100% {0}"})
    assert prompt == "Please read this sentence out loud. USER: {audio} 100% {0}\nASSISTANT: "


@pytest.mark.parametrize("name", TASKS)
def test_missing_and_superfluous_inputs_are_named(name):
    task = TASKS[name]
    task.check({**dict.fromkeys(GOOD), **fields_of(task)})
    for missing in task.fields:
        for absent in (None, ""):
            with pytest.raises(ValueError, match=f"task '{name}' needs `{missing}`: it takes `{task.fields[0]}`"):
                task.check({**fields_of(task), missing: absent})
    for extra in set(GOOD) - set(task.fields):
        with pytest.raises(ValueError, match=f"task '{name}' does not take `{extra}`"):
            task.check({**fields_of(task), extra: GOOD[extra]})
        task.check({**fields_of(task), extra: ""})


def test_text_fields_need_text():
    with pytest.raises(ValueError, match=r"task 'sqa' needs `question` as text, got list"):
        TASKS["sqa"].check({"audio": [1], "question": [3, 4]})


@pytest.mark.parametrize("name", ["ASR", "speak", None, ["tts"]])
def test_an_unknown_task_lists_the_eight(name):
    with pytest.raises(ValueError, match="'asr', 's2tt', 'ser', 'sqa', 'tts', 't2st', 'vc', 'sc'"):
        get_task(name)
