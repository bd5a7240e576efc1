"""Evaluation of the nano checkpoints: grammar, scores, results, cards, and a run on tiny checkpoints."""

import json
import math
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from nano_grammar import KINDS, draw_frames, questions
from nano_lexicon import COLOURS, NAMES, NOUNS, NUMBERS, PLACES, TIMES
from nano_recognizer import GRAMMARS, RULES, accepts, grammar, normalize
from nano_results import HEAD, Results, checkpoint_digest, markdown_table, plain_table, table_cells
from nano_scores import Measure, WordErrors, bleu, bootstrap, median, share
from nano_speaker_id import SpeakerId
from transformers import Qwen3Config, Qwen3ForCausalLM

from dualspeech import SplitLayerQwen3ForCausalLM
from tests.examples.running import load_example
from tests.nano.corpora import all_rows, recordings

LIBRARIES = ("pocketsphinx", "resemblyzer", "jiwer", "sacrebleu", "librosa")
needs_pocketsphinx = pytest.mark.skipif(find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed")


# Grammar and normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom buys three red apples.", "tom buys three red apples"),
        ("  Where is\tthe red car? ", "where is the red car"),
        ("Bitte, finde den Schlüssel!", "bitte finde den schlüssel"),
        ("¿Dónde está?", "dónde está"),
        ("s'il te plaît,", "s'il te plaît"),
        ("...", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected
    assert normalize(normalize(text)) == expected


def frames():
    for kind in KINDS:
        yield from draw_frames("train", 150, seed=11, kinds=(kind,))
    yield from draw_frames("test", 150, seed=11)


def test_grammar_accepts_every_sentence_and_answer():
    sentences, answers = set(), set()
    for frame in frames():
        sentences.add(frame.text())
        answers |= {question.answer for question in questions(frame)}
    assert len(sentences) > 800 and len(answers) > 150
    assert [text for text in sentences if not accepts(text)] == []
    assert [text for text in answers if not accepts(text, "answer")] == []


def test_grammar_has_all_words_of_the_answers():
    words = [*NAMES, *NUMBERS["en"], *(colour.en for colour in COLOURS), *(phrase.en for phrase in (*PLACES, *TIMES))]
    assert all(accepts(word, "answer") for word in words)
    assert all(accepts(f"two {form}", "answer") for noun in NOUNS for form in noun.en)


@pytest.mark.parametrize(
    "text",
    ["", "tom", "tom buys three", "the red apple is", "three five and", "red the apple is in the park", "in the"],
)
def test_grammar_rejects(text):
    assert not accepts(text)


def test_grammar_is_jsgf():
    for name in GRAMMARS:
        text = grammar(name)
        assert text.startswith("#JSGF V1.0;\n") and text.count("public ") == 1
        defined, used = set(re.findall(r"^(?:public )?<(\w+)>", text, re.MULTILINE)), set(re.findall(r"<(\w+)>", text))
        assert used == defined
        assert all(line.endswith(";") for line in text.splitlines())
    with pytest.raises(ValueError, match="`public` is 'question'; accepted are sentence, answer"):
        grammar("question")


@needs_pocketsphinx
def test_pocketsphinx_accepts_what_the_pattern_does():
    """The grammar that is heard with, and the dictionary: a word that is missing there could never be heard."""
    from nano_recognizer import Recognizer

    decoder = Recognizer().decoders[0]
    for name in GRAMMARS:
        fsg = decoder.get_fsg(name)
        texts = [frame.text() for frame in frames()]
        if name == "answer":
            texts = [question.answer for frame in frames() for question in questions(frame)]
        texts = {normalize(text) for text in texts}
        assert [text for text in texts if not fsg.accept(text)] == []
        assert not fsg.accept("the red") and not fsg.accept("three apples red")
    words = {word for body in RULES.values() for word in body.split() if word.isalpha()}
    assert [word for word in words if decoder.lookup_word(word) is None] == []


@needs_pocketsphinx
def test_recordings_do_not_influence_each_other():
    from nano_recognizer import Recognizer

    recognizer, draw = Recognizer(), np.random.default_rng(0)
    first, second = (0.1 * draw.standard_normal(8000) for _ in range(2))
    alone = recognizer(second)
    recognizer(first)
    assert recognizer(second) == alone
    assert recognizer(np.zeros(0)) == ""
    with pytest.raises(ValueError, match="`rule` is 'noun'"):
        recognizer(first, rule="noun")


# Scores


def test_share_is_wilson():
    measure = share("right", [True] * 8 + [False] * 2, target=">= 80")
    assert (measure.value, measure.n, measure.interval) == (80.0, 10, "Wilson")
    # Values of the closed formula.
    assert measure.low == pytest.approx(49.02, abs=0.01) and measure.high == pytest.approx(94.33, abs=0.01)
    assert measure.reached
    all_right = share("right", [True] * 20)
    assert all_right.high == 100.0 and 80 < all_right.low < 90 and all_right.reached is None


def test_failed_rows_are_no_hits():
    measure = share("right", [True, True, False], failed=[False, True, True])
    assert measure.value == pytest.approx(100 / 3) and measure.failed == 2


def test_word_errors():
    counted = WordErrors.count(["The red car.", "one two"], ["the blue car here", "one two"])
    assert counted.errors.tolist() == [2, 0] and counted.words.tolist() == [3, 2]
    measure = counted.rate("WER", target="<= 40")
    assert measure.value == pytest.approx(40) and measure.reached and measure.low <= 40 <= measure.high
    with pytest.raises(ValueError, match="without words"):
        WordErrors.count(["..."], ["a"])


def test_words_of_failed_rows_are_wrong():
    references = ["one two three"] * 3
    counted = WordErrors.count(references, ["one two three", "one two three", "four " * 7], [False, True, True])
    assert counted.errors.tolist() == [0, 3, 7]
    assert counted.rate("WER").failed == 2


def test_difference_is_paired():
    references = [f"one {word}" for word in ("two", "three", "four", "five")]
    theirs = WordErrors.count(references, ["one two", "one", "one four", "one"])
    ours = WordErrors.count(references, ["one", "", "one", ""])
    measure = ours.minus(theirs, "difference", target="<= 10")
    # Each row has one error more, whichever rows are drawn.
    assert (measure.value, measure.low, measure.high) == (50.0, 50.0, 50.0) and measure.unit == "points"
    assert measure.reached is False


def test_bleu():
    pytest.importorskip("sacrebleu")
    texts = ["Tom kauft drei rote Äpfel im Park.", "Wo ist das rote Auto?"]
    whole = bleu("BLEU", texts, texts, [False, False], target=">= 60")
    assert whole.value == pytest.approx(100) and whole.reached and "sacrebleu" in whole.note
    half = bleu("BLEU", texts, texts, [False, True])
    assert half.value < 80 and half.failed == 1


def test_bootstrap_repeats_and_covers():
    draw = np.random.default_rng(3)
    values = draw.normal(5, 1, size=200)

    def mean(rows):
        return values[rows].mean()

    low, high = bootstrap(mean, len(values))
    assert (low, high) == bootstrap(mean, len(values))
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.2)


def test_measures_without_rows():
    for measure in (share("a", []), WordErrors.count([], []).rate("b"), median("c", [], "s"), bleu("d", [], [], [])):
        assert (measure.value, measure.n, measure.reached) == (None, 0, None)


@pytest.mark.parametrize(
    ("target", "value", "reached"), [("< 1", 1.0, False), ("<= 1", 1.0, True), (">= 2", 1, False)]
)
def test_targets(target, value, reached):
    assert Measure("m", value, 3, target=target).reached is reached


def test_speaker_id_takes_the_nearest():
    class Encoder:
        def embed_utterance(self, samples):
            return samples[:3] / np.linalg.norm(samples[:3])

    low, high = np.array([1.0, 0.1, 0.0]), np.array([0.0, 0.2, 1.0])
    speakers = SpeakerId({"low": [low, 3 * low], "high": [high]}, encoder=Encoder())
    assert speakers(np.array([0.9, 0.4, 0.3])) == "low" and speakers(0.01 * high) == "high"
    with pytest.raises(ValueError, match="no recordings of high"):
        SpeakerId({"low": [low], "high": []}, encoder=Encoder())


# Results and cards

MEASURES = [
    Measure("WER", 4.2, 240, 3.1, 5.4, "bootstrap", failed=1, target="<= 5", note="by hand"),
    Measure("exact match", 71.25, 80, 60.5, 80.0, "Wilson", failed=0, target=">= 80"),
    Measure("nothing", None, 0),
]
INPUTS = {"checkpoints": {"dualspeech": "0123"}, "rows": "4567", "limit": None, "seed": 0}


def test_results_go_on(tmp_path):
    path = tmp_path / "results.json"
    results = Results(path)
    assert not results.is_done("asr", INPUTS)
    results.add("asr", INPUTS, MEASURES, [{"said": "ä"}], 1.0, {"versions": "1"})
    again = Results(path)
    assert again.is_done("asr", INPUTS) and again.measures("asr") == MEASURES
    for other in ({"seed": 1}, {"limit": 2}, {"rows": "8"}, {"checkpoints": {"dualspeech": "9"}}):
        assert not again.is_done("asr", INPUTS | other)
    again.add("ser", INPUTS, MEASURES[1:], [], 1.0, {})
    assert set(Results(path).tasks) == {"asr", "ser"} and not path.with_suffix(".partial").exists()
    assert json.loads((tmp_path / "results" / "asr.jsonl").read_text(encoding="utf-8")) == {"said": "ä"}
    assert json.loads(path.read_text(encoding="utf-8"))["tasks"]["asr"]["measures"][0]["reached"] is True


def test_other_files_are_no_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        Results(path)


def test_table():
    cells = table_cells({"asr": MEASURES})
    assert cells[0] == ["asr", "WER", "4.20 %", "3.10 to 5.40", "240", "1", "<= 5", "yes"]
    assert cells[1][2:] == ["71.2 %", "60.5 to 80.0", "80", "0", ">= 80", "no"]
    assert cells[2][2:] == ["no rows", "", "0", "", "", ""]
    lines = plain_table(cells).splitlines()
    assert len(lines) == 4 and all(line.index("asr") == 0 for line in lines[1:])
    assert len({line.find(word) for line, word in zip(lines, ("value", "4.20", "71.2", "no rows"), strict=True)}) == 1
    assert markdown_table(cells).splitlines()[0] == f"| {' | '.join(HEAD)} |"


def test_digest_sees_weights_and_not_the_card(tmp_path):
    (tmp_path / "audio_tokenizer").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("card")
    assert checkpoint_digest(tmp_path) == before
    (tmp_path / "audio_tokenizer" / "model.safetensors").write_bytes(b"codec")
    assert checkpoint_digest(tmp_path) != before
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint_digest(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def dualspeech(tmp_path_factory):
    return load_example("tiny_dualspeech").make_dualspeech_checkpoint(tmp_path_factory.mktemp("nano") / "dualspeech")


@pytest.fixture(scope="module")
def moss(tmp_path_factory):
    folder = load_example("tiny_moss_speech").make_moss_checkpoint(tmp_path_factory.mktemp("nano") / "moss")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"max_new_tokens": 12}))
    return folder


def test_cards_hold_the_numbers(dualspeech, tmp_path):
    script = load_example("nano/write_cards")
    folder = shutil.copytree(dualspeech, tmp_path / "dualspeech-nano")
    results = Results(tmp_path / "results.json")
    inputs = INPUTS | {"checkpoints": {"dualspeech": checkpoint_digest(folder)}}
    results.add("asr", inputs, MEASURES, [], 1.0, {"versions": "torch 2", "batch_size": 16})
    given = ["--commit", "0123abc", "--seeds", "encoder 1"]
    (path,) = script.main([str(results.path), "--dualspeech", str(folder), *given])
    text, card = path.read_text(encoding="utf-8"), ModelCard.load(path)
    for line in (*markdown_table(table_cells({"asr": MEASURES})).splitlines(), "- asr, WER: by hand.", "`0123abc`"):
        assert line in text
    assert "Targets that were not reached: asr: exact match (>= 80)." in text and "encoder 1" in text
    assert {r.task_type for r in card.data.eval_results} == {"automatic-speech-recognition"}
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("wer", 4.2), ("accuracy", 71.25)]
    assert card.data.license == "apache-2.0" and "AutoModelForMultimodalLM" in text
    results.add("asr", INPUTS, MEASURES, [], 1.0, {"versions": "torch 2", "batch_size": 16})
    with pytest.raises(ValueError, match="asr was measured on the checkpoint 0123"):
        script.main([str(results.path), "--dualspeech", str(folder), *given])


# The script


@pytest.fixture(scope="module")
def script():
    return load_example("nano/evaluate")


def test_tasks_are_chosen(script):
    assert script.parse(["--dualspeech", "a"]).tasks == [
        t for t, (name, _) in script.TASKS.items() if name == "dualspeech"
    ]
    assert script.parse(["--stage2", "a"]).tasks == ["perplexity"]
    assert script.parse(["--dualspeech", "a", "--tasks", "ser,asr"]).tasks == ["asr", "ser"]
    for arguments, message in (
        (["--dualspeech", "a", "--tasks", "asd"], "`tasks` has asd; accepted are asr"),
        (["--dualspeech", "a", "--tasks", "chats"], "`tasks` has chats, which need --moss"),
        ([], "nothing to measure"),
    ):
        with pytest.raises(ValueError, match=message):
            script.parse(arguments)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two rows of each group of the test split with their recordings, and one recording of the training per voice."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if missing := [name for name in ("espeak-ng", "flite") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    from nano_audio import record

    folder = tmp_path_factory.mktemp("nano") / "corpus"
    for split in ("train", "test"):
        rows, files = all_rows(split, 0.01)
        utterances = {utterance.path: utterance for utterance in rows.utterances}
        if split == "train":
            files = {"recordings": list({row["speaker"]: row for row in files["recordings"]}.values())}
        else:
            known, unseen = files["asr"][:1], files["asr"][-1:]
            files = {name: rows[: 4 if name == "chats" else 2] for name, rows in files.items()}
            files["asr"] = known + unseen
        (folder / "rows" / split).mkdir(parents=True)
        for name, kept in files.items():
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            (folder / "rows" / split / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        for path in sorted({path for name, kept in files.items() if name in HEARD for path in recordings(kept)}):
            record(utterances[path], str(folder))
    return folder


HEARD = ("asr", "s2tt", "ser", "sqa", "tts", "vc", "t2st", "sc", "chats", "recordings")


def test_missing_recordings_are_no_failed_rows(tmp_path):
    from nano_listening import Corpus

    (tmp_path / "rows" / "test").mkdir(parents=True)
    row = {"task": "asr", "audio": "../../audio/us/0.wav", "targets": "one"}
    (tmp_path / "rows" / "test" / "asr.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"asr.jsonl:1: `audio` .*0.wav' is missing"):
        Corpus(tmp_path).rows("asr")
    with pytest.raises(ValueError, match="`corpus` has no"):
        Corpus(tmp_path).rows("ser")


def test_refused_rows_are_failed_rows(dualspeech):
    from nano_dualspeech_tasks import DualSpeechEvaluation

    # The tiny checkpoint takes 3 s at most.
    lengths = (16000, 16000 * 4, 8000)
    noise = [0.1 * np.random.default_rng(0).standard_normal(length) for length in lengths]
    rows = [{"task": "asr", "audio": {"array": samples, "sampling_rate": 16000}} for samples in noise]
    answers = DualSpeechEvaluation(dualspeech, None, None, batch_size=2).answers(rows)
    assert answers[1].failed.startswith("refused: ") and answers[1].text is None
    assert all(isinstance(answers[i].text, str) and answers[i].failed in (None, "length") for i in (0, 2))


def test_perplexity_of_the_stages(tmp_path):
    """Stage 1 trains the speech side alone: the text model's logits bit for bit. Later stages move."""
    from nano_listening import Corpus
    from nano_moss_tasks import perplexity

    tokenizer = load_example("tiny_moss_speech").tiny_moss_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer), "initializer_range": 0.2}
    text_model = Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=True)).eval()
    stage1 = SplitLayerQwen3ForCausalLM.from_text_model(
        text_model,
        num_modality_layers=1,
        audio_vocab_size=48,
        sosp_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
        modality_pad_token_id=tokenizer.convert_tokens_to_ids("<think>"),
        eosp_token_id=40,
        audio_pad_token_id=7,
    )
    folders = {name: str(tmp_path / name) for name in ("text_model", "stage1", "stage2")}
    text_model.save_pretrained(folders["text_model"])
    stage1.save_pretrained(folders["stage1"])
    with torch.no_grad():
        stage1.text_lm_head.weight.mul_(0.5)
    stage1.save_pretrained(folders["stage2"])
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    rows = tmp_path / "corpus" / "rows" / "test"
    rows.mkdir(parents=True)
    texts = ["Tom buys three red apples.", "Where is the red car? It is here."]
    (rows / "texts.jsonl").write_text("".join(json.dumps({"chunks": [text]}) + "\n" for text in texts))
    measures, lines = perplexity(folders, Corpus(tmp_path / "corpus"))
    found = {m.name: m for m in measures}
    assert found["logits of stage1 are those of text_model, bit for bit"].value == 100
    assert found["perplexity, stage1 by text_model"].value == 1
    changed = found["perplexity, stage2 by text_model"]
    ratio = found["perplexity, stage2"].value / found["perplexity, text_model"].value
    assert changed.value == pytest.approx(ratio) and ratio != 1 and changed.reached is (ratio <= 1.1)
    # By hand, from the text model's own loss: a mean over all ids but the first.
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    sums = [text_model(row, labels=row).loss.item() * (row.shape[1] - 1) for row in ids]
    expected = math.exp(sum(sums) / sum(row.shape[1] - 1 for row in ids))
    assert found["perplexity, text_model"].value == pytest.approx(expected, rel=1e-5)
    assert [line["ids"] for line in lines] == [row.shape[1] - 1 for row in ids]


@pytest.mark.slow
def test_tiny_checkpoints_end_to_end(script, corpus, dualspeech, moss, tmp_path, capsys):
    names = {"--corpus": corpus, "--dualspeech": dualspeech, "--moss": moss, "--stage1": moss, "--limit": 2}
    arguments = [str(part) for pair in (names | {"--output": tmp_path / "results.json"}).items() for part in pair]
    results = script.main(arguments)
    assert set(results.tasks) == set(script.TASKS)
    found = {task: {m.name: m for m in results.measures(task)} for task in results.tasks}
    for task, measures in found.items():
        assert measures, task
        for m in measures.values():
            assert m.n and m.value is not None and math.isfinite(m.value), (task, m)
            assert m.low is None or m.low <= m.value <= m.high, (task, m)
    # The recogniser hears the synthesizer, and not noise.
    assert found["tts"]["WER of the synthesizer, pocketsphinx"].value <= 50
    assert found["tts"]["WER of generated speech, pocketsphinx"].value >= 60
    assert found["tts"]["nearest voice is the target voice: the synthesizer's own"].value >= 50
    assert found["codec_dualspeech"]["nearest voice is the target voice"].n == 2
    assert {"WER, known voices", "WER, unseen voices"} <= set(found["asr"])
    assert found["streaming"]["real-time factor, worst"].target == "< 1"
    same = found["perplexity"]
    assert same["perplexity, stage1"].value == same["perplexity, moss"].value > 1
    lines = (tmp_path / "results" / "tts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and {"wanted", "heard", "failed"} <= set(json.loads(lines[0]))
    capsys.readouterr()
    script.main(arguments)
    printed = capsys.readouterr().out
    assert all(f"{task}: is in " in printed for task in script.TASKS) and "95 % interval" in printed
