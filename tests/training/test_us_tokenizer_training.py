"""Training of the USTokenizer: batches, logged loss parts, the example script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from dualspeech import UsTokenizerForUnderstanding, UsTokenizerForUnderstandingConfig
from dualspeech.training.data_collator_us_tokenizer import PROMPTS, UsTokenizerCollator
from dualspeech.training.loss_parts import LossPartsMixin
from tests.examples.running import load_example
from tests.modeling.us_tokenizer_cases import recorded_tokenizer, spread_codebook, tiny_config, tiny_text_model

ROOT = Path(__file__).parents[2]


def audio(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def rows():
    return [
        {"audio": audio(9600), "task": "asr", "text": "hello"},
        {"audio": {"array": audio(16000), "sampling_rate": 16000}, "task": "ser", "text": "hello world a longer one"},
        {"audio": audio(4000), "task": "sqa", "text": "seven", "question": "how {many}?"},
    ]


def config(**kwargs):
    return UsTokenizerForUnderstandingConfig(
        us_tokenizer_config=tiny_config(encoder_config={"num_mel_bins": 80}, **kwargs),
        text_config=tiny_text_model(vocab_size=321).config,
    )


def training_model(**kwargs):
    torch.manual_seed(0)
    model = UsTokenizerForUnderstanding(config(**kwargs))
    model.attach_text_model(tiny_text_model(vocab_size=321))
    spread_codebook(model.us_tokenizer)
    return model


def naive_sequence(tokenizer, row, num_codes):
    """Ids and targets of one row, from one string per part."""
    prompt = PROMPTS[row["task"]].replace("{}", row.get("question", ""))
    pieces = ["USER: <Speech>", f"</Speech> {prompt}\nASSISTANT:", row["text"] + "<|end_of_text|>"]
    before, behind, answer = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces)
    ids = [0, *before, *[-1] * num_codes, *behind, *answer]
    return ids, [-100] * (len(ids) - len(answer)) + answer


@pytest.mark.parametrize("mask_padding", [True, False])
def test_batches_hold_each_row_as_it_is_alone(mask_padding):
    tokenizer = recorded_tokenizer()
    batch = UsTokenizerCollator(config(mask_padding=mask_padding), tokenizer)(rows())
    assert batch["num_samples"].tolist() == [9600, 16000, 4000]
    assert batch["input_features"].shape == (3, 80, 100)
    for i, (row, codes) in enumerate(zip(rows(), [15, 25, 6], strict=True)):
        ids, targets = naive_sequence(tokenizer, row, codes if mask_padding else 25)
        valid = batch["attention_mask"][i].bool()
        assert valid.tolist() == [True] * len(ids) + [False] * (len(valid) - len(ids))
        assert batch["input_ids"][i, valid].tolist() == ids and batch["labels"][i, valid].tolist() == targets
        assert batch["labels"][i, ~valid].eq(-100).all() and batch["input_ids"][i, ~valid].eq(320).all()
    model = training_model(mask_padding=mask_padding).eval()
    assert model(**batch).loss.isfinite()


def test_middle_padding_holds_the_same_rows():
    tokenizer = recorded_tokenizer()
    right = UsTokenizerCollator(config(), tokenizer)(rows())
    middle = UsTokenizerCollator(config(), tokenizer, padding="middle")(rows())
    for i in range(3):
        for key in ("input_ids", "labels"):
            valid = [batch[key][i, batch["attention_mask"][i].bool()] for batch in (right, middle)]
            assert torch.equal(*valid)
    starts = [mask.nonzero()[-1].item() for mask in middle["attention_mask"]]
    assert len(set(starts)) == 3 and not middle["attention_mask"].diff(dim=1).le(0).all()


def test_generation_batches_are_padded_on_the_left_and_have_no_answer():
    tokenizer = recorded_tokenizer()
    questions = [{key: value for key, value in row.items() if key != "text"} for row in rows()]
    batch = UsTokenizerCollator(config(), tokenizer).for_generation(questions)
    assert "labels" not in batch and batch["attention_mask"][:, -1].all()
    for i, (row, codes) in enumerate(zip(rows(), [15, 25, 6], strict=True)):
        ids, targets = naive_sequence(tokenizer, row, codes)
        prompt = ids[: sum(target == -100 for target in targets)]
        assert batch["input_ids"][i, -len(prompt) :].tolist() == prompt
    generated = training_model().eval().generate(**batch, max_new_tokens=3, do_sample=False)
    assert generated.shape[0] == 3


def test_options_of_the_collator():
    tokenizer = recorded_tokenizer()
    batch = UsTokenizerCollator(config(), tokenizer, max_text_length=4, pad_to_multiple_of=64, end_symbol="!")(rows())
    assert batch["labels"].ne(-100).sum(dim=1).max() == 4 and batch["input_ids"].shape[1] % 64 == 0
    own = UsTokenizerCollator(config(), tokenizer, prompts={"count": "How many?"})
    assert own([{"audio": audio(6400), "task": "count", "text": "two"}])["input_ids"].shape[0] == 1
    short = UsTokenizerCollator(config(min_seconds=0.5), tokenizer)(rows())
    assert short["num_samples"].tolist() == [9600, 16000, 8000]
    tokenizer.bos_token = None
    without_bos = UsTokenizerCollator(config(), tokenizer)(rows())
    assert (
        without_bos["input_ids"].shape[1]
        == UsTokenizerCollator(config(), recorded_tokenizer())(rows())["input_ids"].shape[1] - 1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "tts"}, r"task: 'tts' is not accepted; \['asr', 'ser', 'sqa', 'stqa'"),
        ({"task": "sqa"}, "question: missing"),
        ({"text": None}, "text: missing"),
        ({"audio": audio(16001)}, "audio: 1.00 seconds; at most 1.0"),
        ({"audio": {"array": audio(8000), "sampling_rate": 8000}}, "8000 Hz"),
        ({"audio": np.zeros(0, dtype=np.float32)}, "empty"),
        ({"audio": np.full(8000, np.nan, dtype=np.float32)}, "NaN"),
        ({"audio": "absent.wav"}, "does not exist"),
    ],
)
def test_bad_rows_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UsTokenizerCollator(config(), recorded_tokenizer())([{**rows()[0], **change}])


def test_bad_options_are_refused():
    tokenizer = recorded_tokenizer()
    with pytest.raises(ValueError, match="padding: 'left' is not accepted"):
        UsTokenizerCollator(config(), tokenizer, padding="left")
    with pytest.raises(ValueError, match="rows: every row needs 'audio'"):
        UsTokenizerCollator(config(), tokenizer)([{"task": "asr", "text": "x"}])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end_symbol: the tokenizer has no"):
        UsTokenizerCollator(config(), tokenizer)


class PartsTrainer(LossPartsMixin, Trainer):
    pass


def parts_trainer(folder, model, **kwargs):
    arguments = {"max_steps": 4, "logging_steps": 2, "learning_rate": 1e-3, "gradient_accumulation_steps": 2}
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=2,
        disable_tqdm=True,
        use_cpu=True,
        **{**arguments, **kwargs},
    )
    collator = UsTokenizerCollator(model.config, recorded_tokenizer())
    return PartsTrainer(
        model=model, args=arguments, train_dataset=rows() * 2, eval_dataset=rows(), data_collator=collator
    )


def weighted(entry, prefix=""):
    parts = {"commitment": 1, "reconstruction": 45, "understanding": 5}
    return sum(weight * entry[f"{prefix}{name}_loss"] for name, weight in parts.items())


def test_logged_parts_add_up_to_the_logged_loss(tmp_path):
    trainer = parts_trainer(tmp_path, training_model())
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss"] == pytest.approx(weighted(entry), rel=1e-4)
        assert entry["perplexity"] > 1
    metrics = trainer.evaluate()  # batches of 2 rows and of 1: the parts are means over items, as in one batch
    with torch.no_grad():
        whole = trainer.model.eval()(**trainer.data_collator(rows()))
    assert metrics["eval_understanding_loss"] == pytest.approx(float(whole.understanding_loss), rel=1e-4)
    assert float(whole.loss) == pytest.approx(metrics["eval_loss"], rel=1e-4)
    assert metrics["eval_loss"] == pytest.approx(weighted(metrics, "eval_"), rel=1e-6)
    assert "eval_commitment_loss" in trainer.state.log_history[-1]
    assert "test_understanding_loss" in trainer.evaluate(metric_key_prefix="test")


def test_parts_that_a_batch_lacks_do_not_count(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            loss = self.weight * x.mean()
            return {"loss": loss, "even_loss": loss if x[0] % 2 == 0 else None}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", max_steps=4, logging_steps=4, learning_rate=0.0,
        per_device_train_batch_size=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"x": float(i)} for i in range(4)]
    trainer = PartsTrainer(model=Model(), args=arguments, train_dataset=data)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(1.5) and entry["even_loss"] == pytest.approx(1.0)


def test_evaluation_changes_no_state_and_training_moves_the_codebook(tmp_path):
    model = training_model(kmeans_init=True)
    trainer = parts_trainer(tmp_path, model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.evaluate()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    trainer.train()
    assert model.us_tokenizer.quantizer.initialized
    assert not torch.equal(model.us_tokenizer.quantizer.embed, before["us_tokenizer.quantizer.embed"])
    encoder = "us_tokenizer.encoder."
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith(encoder))
    assert not model.text_model.training


@pytest.mark.slow
def test_two_processes_log_joint_parts_and_keep_one_codebook(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "tests.training.us_tokenizer_two_ranks", str(tmp_path)]
    subprocess.run([sys.executable, *launch, *script], check=True, cwd=ROOT)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0]["codebook"] == results[1]["codebook"]
    for entry in results[0]["log"]:
        prefix = "" if "loss" in entry else "eval_"
        if f"{prefix}understanding_loss" in entry:
            assert entry[f"{prefix}loss"] == pytest.approx(weighted(entry, prefix), rel=1e-3)
    assert any("loss" in entry for entry in results[0]["log"])


@pytest.fixture
def example():
    return load_example("train_us_tokenizer")


def test_example_runs_and_its_loss_falls(example, monkeypatch, tmp_path, capsys):
    make = example.tiny_text_model
    monkeypatch.setattr(example, "tiny_text_model", lambda tokenizer, rows, steps: make(tokenizer, rows, steps=2))
    arguments = f"--output_dir {tmp_path} --max_steps 15 --tiny_rows 24 --logging_steps 5 --eval_steps 15 --use_cpu"
    metrics = example.main(arguments.split())
    assert metrics["eval_loss"] < 0.9 * metrics["before"]
    assert {
        "eval_sqa_understanding_loss",
        "eval_asr_reconstruction_loss",
        "eval_ser_commitment_loss",
    } <= metrics.keys()
    assert "evaluation loss" in capsys.readouterr().out
    UsTokenizerForUnderstanding.from_pretrained(tmp_path)


@pytest.mark.slow
def test_example_with_files_and_released_layout(example, tmp_path):
    import soundfile

    for name in ("train", "eval"):
        lines = []
        for i, row in enumerate(example.tiny_rows(12, seed=0)):
            file = tmp_path / f"{name}{i}.wav"
            soundfile.write(file, row["audio"]["array"], 16000)
            lines.append(json.dumps({**row, "audio": str(file)}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = f"--train_file {tmp_path}/train.jsonl --eval_file {tmp_path}/eval.jsonl"
    parity = "--padding middle --official_parity --max_text_length 300 --kmeans_init"
    metrics = example.main(f"--output_dir {tmp_path}/out --max_steps 60 --use_cpu {files} {parity}".split())
    assert metrics["eval_loss"] < 0.5 * metrics["before"]
