"""Texts for the small text models: spelled speech, and prompts that are those of the library."""

import random
import re

import nano_texts
import pytest
from nano_texts import CHAT_TOKENS, chat_examples, copying_drills, reading_drills, rows_of, spell, task_examples
from train_text_model import encode, train_tokenizer

from dualspeech import UsTokenizerForUnderstandingConfig
from dualspeech.processing.sequence_builder import SequenceBuilder
from dualspeech.processing.tasks import TASKS
from dualspeech.processing.tokenization_dualspeech import extend_tokenizer
from dualspeech.training.data_collator_us_tokenizer import PROMPTS, UsTokenizerCollator
from tests.modeling.us_tokenizer_cases import tiny_config, tiny_text_model
from tests.processing.moss_processor_cases import tiny_moss_processor

from .corpora import write_rows

MARK = "[SPEECH]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of a training split at scale 0.01."""
    return write_rows(tmp_path_factory.mktemp("corpus") / "rows" / "train")


@pytest.fixture
def marked(monkeypatch):
    """A mark in place of every spelled or written speech."""
    monkeypatch.setattr(nano_texts, "_speech", lambda *arguments: MARK)
    monkeypatch.setattr(nano_texts, "spell", lambda *arguments, **kwargs: f" {MARK}")


def test_spell():
    assert spell("To, a.", random.Random(0), (1, 1), mistakes=0) == " t o | a"
    assert spell("It's 2!", random.Random(0), (2, 2), mistakes=0) == " i i t t s s | | 2 2"
    repeated = spell("a b" * 50, random.Random(0), (1, 3), mistakes=0)
    assert {len(run) for run in re.findall(r"(?:\| )+", repeated)} == {2, 4, 6}
    wrong = spell("z" * 4000, random.Random(1), (1, 1), mistakes=0.05).split()
    assert 100 < sum(letter != "z" for letter in wrong) < 300  # 5 % of 4000, a 26th of them right by chance
    first, again, other = (spell("Tom buys it.", random.Random(seed), (1, 3)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("examples", [copying_drills, reading_drills, task_examples, chat_examples])
def test_examples_are_the_same_for_a_seed(folder, examples):
    first = list(examples(folder, 0))
    assert first == list(examples(folder, 0)) and first != list(examples(folder, 1))
    assert all(example.answer and "None" not in example.prompt for example in first)
    assert any(not example.prompt for example in first)


def test_all_text_tasks_are_practised(folder):
    made = list(task_examples(folder))
    for name in ("asr", "sqa", "s2tt", "t2st"):
        start = TASKS[name].template.partition("{")[0]
        assert [example for example in made if example.prompt.startswith(start)], name
    for name in ("asr", "ser", "sqa"):
        end = PROMPTS[name].partition("{}")[0]
        assert [example for example in made if example.prompt.startswith("USER: <Speech>") and end in example.prompt]
    for row in rows_of(folder, "s2tt"):
        assert ("", row["targets"], True) in made
    questions = {row["question"] for row in rows_of(folder, "sqa")}
    assert all(any(question in example.prompt for example in made) for question in questions)


def repeats(text):
    words = text.split()
    return any(words[:-n] == words[n:] for n in range(1, min(15, len(words))))


def test_drills(folder):
    """Lists of words that repeat themselves; in reading also words that are spelled in front, and spelled lists."""
    copied, made = list(copying_drills(folder)), list(reading_drills(folder))
    assert not any(example.prompt for example in copied) and all(repeats(answer) for _, answer, _ in copied)
    asked = [example for example in made if example.prompt]
    spelled = [example for example in made if not example.prompt and re.match(r" \S ", example.answer)]
    again = [example for example in made if not example.prompt and repeats(example.answer)]
    assert [len(some) / len(made) for some in (asked, spelled, again)] == pytest.approx([0.4, 0.4, 0.2], abs=0.02)
    for examples in (copied, asked, spelled, again):
        assert {example.starts for example in examples} == {True, False}


def test_three_of_four_speeches_are_spelled(folder):
    start = "USER: <Speech>"
    said = [example.prompt for example in task_examples(folder) if example.prompt.startswith(start)]
    said = [prompt for prompt in said if PROMPTS["asr"] in prompt]
    spelled = [prompt for prompt in said if re.match(r" \w \S ", prompt.removeprefix(start))]
    assert 0.5 < len(spelled) / len(said) < 0.95


def test_task_prompts_are_those_of_the_processor(folder, marked):
    """Text of a prompt and of an answer become the ids that `DualSpeechProcessor` makes."""
    examples = list(task_examples(folder))
    tokenizer = train_tokenizer(examples, 600)
    speech_ids = extend_tokenizer(tokenizer, 4)
    builder = SequenceBuilder(tokenizer, speech_ids)
    task = TASKS["t2st"]
    for row in rows_of(folder, "t2st"):
        fields = {name: row[name] for name in task.fields}
        expected = builder.example(task, fields, row["metadata"]["target_text"])
        prompt = task.template.format(**fields)
        (found,) = {example for example in examples if example == (prompt, row["metadata"]["target_text"], True)}
        (encoded,) = encode([found], tokenizer)
        assert encoded["input_ids"] == encoded["labels"] == expected["input_ids"]
    for name in ("asr", "s2tt", "sqa"):
        for row in rows_of(folder, name):
            fields = {field: row.get(field) for field in TASKS[name].fields} | {"audio": None}
            before, _, *behind = TASKS[name].parts(fields)
            # in place of speech stands text, so the space in front of it stays
            assert (f"{before} {MARK}{''.join(behind)}", row["targets"], True) in examples


def test_tokenizer_prompts_are_those_of_its_collator(folder, marked):
    examples = list(task_examples(folder))
    tokenizer = train_tokenizer(examples, 600)
    text_config = tiny_text_model(vocab_size=len(tokenizer)).config
    config = UsTokenizerForUnderstandingConfig(us_tokenizer_config=tiny_config(), text_config=text_config)
    collator = UsTokenizerCollator(config, tokenizer)
    for name in ("asr", "ser", "sqa"):
        for row in rows_of(folder, name):
            given = {"task": name, "text": row["targets"], "question": row.get("question")}
            bos_and_before, _, behind, answer = collator._sequence(given, 1, answers=True)
            prompt = tokenizer.decode(bos_and_before[1:]) + f"{' ' if name == 'ser' else ''}{MARK}"
            prompt += tokenizer.decode(behind)
            assert (prompt, row["targets"], True) in examples
            (encoded,) = encode([nano_texts.TextExample(prompt, row["targets"])], tokenizer)
            ids = encoded["input_ids"]
            assert ids[-len(answer) :] == answer and ids[0] == bos_and_before[0] == tokenizer.bos_token_id


def test_chats_are_those_of_the_processor(folder):
    """Rows of a written chat: the text ids that `MossSpeechProcessor` makes."""
    examples = list(chat_examples(folder))
    tokenizer = train_tokenizer(examples, 600)
    processor = tiny_moss_processor(tokenizer=tokenizer, vocab_size=len(tokenizer))
    chats = [row for row in rows_of(folder, "chats") if row["metadata"]["form"] == "text_to_text"]
    assert len(chats) > 20
    for row in chats:
        rows = processor([row["messages"][:1]], "text")["input_ids"][0, :, 0].tolist()
        prompt = tokenizer.decode(rows)
        assert (prompt, row["metadata"]["answer_text"], False) in examples
        (encoded,) = encode([nano_texts.TextExample(prompt, row["metadata"]["answer_text"], starts=False)], tokenizer)
        ids = encoded["input_ids"]
        assert ids[: len(rows)] == rows and ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
        answered = processor([row["messages"]], "text", add_generation_prompt=False)["input_ids"][0, :, 0].tolist()
        assert answered[: len(ids)] == ids


def test_spoken_chats_are_spelled(folder, marked):
    prompts = {example.prompt for example in chat_examples(folder) if example.prompt.startswith(CHAT_TOKENS[1])}
    assert [prompt for prompt in prompts if f"<|im_start|>user\n{MARK}<|im_end|>\n" in prompt]
