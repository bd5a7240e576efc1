"""The training script on generated data: all tasks mixed, both kinds of answers, LoRA, data files."""

import json
from functools import partial

import pytest
import soundfile
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

from dualspeech.training.training_data import encode_rows
from tests.examples.running import EXAMPLES, load_example

FAST = ["--report_to", "none", "--save_strategy", "no", "--logging_steps", "2", "--disable_tqdm", "true"]


def arguments(folder, **kwargs):
    named = {"output_dir": folder, "max_steps": 16, "eval_steps": 8, "per_device_train_batch_size": 8, **kwargs}
    return [str(part) for name, value in named.items() for part in (f"--{name}", value)] + FAST


@pytest.fixture(scope="module")
def script():
    return load_example("train_dualspeech")


def test_eval_loss_falls_and_the_checkpoint_works(script, tmp_path, capsys):
    metrics = script.main(arguments(tmp_path, tiny_rows=32))
    assert metrics["eval_loss"] < 0.85 * metrics["before"]
    assert {"eval_asr_text_loss", "eval_tts_semantic_loss", "eval_vc_acoustic_loss"} <= set(metrics)
    assert {"eval_understanding_loss", "eval_speech_loss"} <= set(metrics)
    assert "'acoustic_loss'" in capsys.readouterr().out
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    row = script.tiny_rows(5)[4]
    output = model.generate(
        **processor(task="tts", text=row["text"], speaker=row["targets"]["audio"]), max_new_tokens=12
    )
    assert len(processor.batch_decode(output)[0].audio) > 0


def test_lora_adapter_loads_again(script, tmp_path):
    metrics = script.main(arguments(tmp_path, tiny_rows=16, lora_r=4, max_steps=8))
    assert metrics["eval_loss"] < metrics["before"]
    assert not (tmp_path / "model.safetensors").exists()
    processor = AutoProcessor.from_pretrained(tmp_path)
    batch = processor.pad(script.encode(script.tiny_rows(8, seed=43), processor))
    base = script.tiny_model(processor.tokenizer, seed=42)
    with torch.no_grad():
        untrained = base.eval()(**batch).loss
        reloaded = PeftModel.from_pretrained(base, tmp_path).eval()
        trained = reloaded(**batch).loss
        merged = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged").eval()(**batch).loss
    assert trained < untrained
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert AutoProcessor.from_pretrained(tmp_path / "merged").semantic_codebook_size == 32


def test_rows_from_files_and_token_rows(script, tmp_path):
    lines = []
    for i, row in enumerate(script.tiny_rows(8)):
        for holder in (row, row["targets"] if isinstance(row["targets"], dict) else {}):
            for name in ("audio", "question"):
                if isinstance(holder.get(name), dict):
                    path = tmp_path / f"{i}-{name}-{holder is row}.wav"
                    soundfile.write(path, holder[name]["array"], holder[name]["sampling_rate"])
                    holder[name] = path.name
        lines.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    metrics = script.main(arguments(tmp_path / "out", max_steps=3, train_file=tmp_path / "rows.jsonl", save_steps=9))
    assert "eval_loss" not in metrics  # no data to evaluate on

    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    tokens = script.load_source(tmp_path / "rows.jsonl", partial(script.encode, processor=processor), "task")
    (tmp_path / "tokens").mkdir()
    tokens.to_parquet(tmp_path / "tokens" / "part-00000.parquet")
    data = {"train_data": tmp_path / "tokens", "eval_data": tmp_path / "tokens", "checkpoint": tmp_path / "out"}
    asked = {"sample_rows": tmp_path / "rows.jsonl", "sample_new_tokens": 6}
    metrics = script.main(
        arguments(tmp_path / "more", max_steps=3, metric_for_best_model="speech_loss", **data, **asked)
    )
    assert metrics["eval_loss"] < metrics["before"]
    assert {path.name for path in (tmp_path / "more").glob("samples-*")} == {"samples-0", "samples-3"}

    (tmp_path / "bad.jsonl").write_text(lines[0] + "\n" + lines[1].replace('"English"', "null") + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: .*source_language"):
        script.main(arguments(tmp_path / "out", train_file=tmp_path / "bad.jsonl"))
    with pytest.raises(ValueError, match=r"max_length|longer"):
        script.main(arguments(tmp_path / "out", train_data=tmp_path / "tokens", context_length=20))


def test_mixture_weights(script):
    processor = load_example("tiny_dualspeech").tiny_processor()
    examples = encode_rows(script.tiny_rows(16), partial(script.encode, processor=processor))
    data = script.mix(examples, "asr=8,s2tt=1,ser=1,sqa=1,tts=1,t2st=1,vc=1,sc=1", seed=0)
    counts = torch.bincount(torch.tensor(data["task_type_ids"][:]), minlength=9)
    assert counts[1] > 3 * counts[2:].float().mean() and (counts[1:] > 0).all()
    with pytest.raises(ValueError, match="sing"):
        script.mix(examples, script.TASK_WEIGHTS + ",sing=1", seed=0)
    with pytest.raises(ValueError, match="vc"):
        script.mix(examples, script.TASK_WEIGHTS.replace("vc=0.2,", ""), seed=0)


def test_checkpoints_keep_their_attention(script, tmp_path):
    processor = script.variant_processor(
        script.get_variant("ustoken"), script.tiny_tokenizer(None), script.tiny_audio_tokenizer()
    )
    script.tiny_model(processor.tokenizer, acoustic_config={"condition_attention": "causal"}).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _, _ = script.load(script.ModelArguments(checkpoint=str(tmp_path), semantic_loss_weight=0.5), seed=0)
    assert model.config.acoustic_config.condition_attention == "causal" and model.config.semantic_loss_weight == 0.5
    with pytest.raises(ValueError, match="`condition_attention` 'bidirectional' is not that of the checkpoint"):
        script.load(script.ModelArguments(checkpoint=str(tmp_path), condition_attention="bidirectional"), seed=0)
    with pytest.raises(StrictDataclassClassValidationError, match="coc_probabilities"):
        script.load(script.ModelArguments(checkpoint=str(tmp_path), coc_probabilities=[1.0, 0.0]), seed=0)


def test_scripts_stay_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 250, path.name


def test_label_smoothing_is_refused(script, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        script.main(arguments(tmp_path, label_smoothing_factor=0.1, tiny_rows=8))
