"""Every recipe of the package runs: the scripts find all its arguments, a tiny model trains, the schedules hold."""

import dataclasses
import json
import math
import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, TrainingArguments, get_scheduler

from dualspeech.training.recipe import RECIPES, parse_arguments, read_recipe, recipe_names
from tests.examples.running import load_example

FIXED = ["--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu"]
DUALSPEECH = ("dualspeech", "dualspeech_vicuna")
# The overrides that the comments of recipes name, and what they make of the configuration of the model.
VARIANTS = {
    "--variant hubert": {"semantic_frame_rate": 50.0},
    "--variant baseline_acoustic --max_steps 160000": {"acoustic_config": None, "semantic_frame_rate": 40.0},
    "--variant baseline_semantic": {"acoustic_config": None, "semantic_frame_rate": 50.0},
    "--semantic_loss_weight 0": {"semantic_loss_weight": 0.0, "acoustic_loss_weight": 1.0},
    "--coc_probabilities 0 0 1": {"coc_probabilities": [0.0, 0.0, 1.0]},
    "--official_parity": {"acoustic_on_understanding": True, "coc_granularity": "batch", "condition_on_eos": False},
}
TOKENIZER_ABLATIONS = {
    "--understanding_loss_weight 0": {"understanding_loss_weight": 0.0},
    "--reconstruction_loss_weight 0": {"reconstruction_loss_weight": 0.0},
    "--official_parity": {"mask_padding": False, "dead_code_threshold": 0.0, "min_seconds": 1.0},
}


def with_slow(overrides, fast):
    """Parameters of which one runs in the fast step."""
    return [pytest.param(override, marks=[] if override == fast else pytest.mark.slow) for override in overrides]


def script_of(recipe):
    return yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["script"]


def train(recipe, folder, *arguments, module=None):
    module = load_example(script_of(recipe)) if module is None else module
    return module.main(["--recipe", recipe, "--tiny", "--output_dir", str(folder), *FIXED, *map(str, arguments)])


@pytest.fixture
def trained(monkeypatch):
    """`trained(recipe, folder, ...)`: the metrics of a tiny run, and its Trainer."""

    def run_and_keep(recipe, folder, *arguments):
        module = load_example(script_of(recipe))
        kept, run = [], module.run
        monkeypatch.setattr(module, "run", lambda trainer, *args: kept.append(trainer) or run(trainer, *args))
        return train(recipe, folder, *arguments, module=module), kept[0]

    return run_and_keep


@pytest.mark.parametrize("recipe", recipe_names())
def test_scripts_take_every_argument(recipe, monkeypatch):
    """Names and values, without a run; `--tiny` changes nothing that does not exist."""
    module, seen = load_example(script_of(recipe)), {}

    def catch(script, groups, arguments=None, defaults=None, tiny=None):
        seen.update(script=script, groups=groups, names={*(defaults or {}), *(tiny or {})})
        raise StopIteration

    monkeypatch.setattr(module, "parse_arguments", catch)
    with pytest.raises(StopIteration):
        module.main(["--output_dir", "unused"])
    assert seen["script"] == script_of(recipe)
    known = {entry.name for group in seen["groups"] for entry in dataclasses.fields(group)}
    assert seen["names"] <= known
    assert set(read_recipe(recipe)) - {"global_batch_size"} <= known
    parsed = parse_arguments(seen["script"], seen["groups"], ["--recipe", recipe, "--output_dir", "unused", *FIXED])
    values = {name: value for group in parsed for name, value in vars(group).items()}
    for name, value in read_recipe(recipe).items():
        assert values[name] == value or isinstance(value, str), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_run(recipe, tmp_path):
    metrics = train(recipe, tmp_path, "--max_steps", 20)
    assert math.isfinite(metrics["train_loss"])
    assert metrics.get("eval_loss") is None or math.isfinite(metrics["eval_loss"])


@pytest.mark.parametrize("recipe", ["us_tokenizer", "dualspeech", "moss_sft"])
def test_recipes_run_some_steps(recipe, tmp_path, capsys):
    metrics = train(recipe, tmp_path, "--max_steps", 2, "--tiny_rows", 16)
    assert math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["eval_loss"])
    assert capsys.readouterr().out.startswith(f"recipe: {recipe} (tiny)")


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("us_tokenizer", {0: 1e-6, 2999: 3e-5, 3000: 3e-5, -1: 1e-5}),
        ("dualspeech", {0: 0.0, 1750: 5e-5, 3500: 1e-4, 31750: 5.5e-5, -1: 1e-5}),
        ("moss_stage1", {0: 0.0, 1000: 2e-4, 2000: 4e-4, -1: 4e-5}),
        ("moss_stage2_full", {2000: 6e-5, -1: 6e-6}),
        ("moss_sft", {0: 1e-5, -1: 1e-6}),
    ],
)
def test_learning_rates(recipe, rates):
    """Rates at steps of the training, of which the papers give some."""
    values = read_recipe(recipe)
    steps = values.get("max_steps", 80_000)
    arguments = {name: value for name, value in values.items() if name in TrainingArguments.__dataclass_fields__}
    arguments = TrainingArguments(**{**arguments, "output_dir": "unused", "use_cpu": True, "report_to": "none"})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.get_warmup_steps(steps),
        steps,
        arguments.lr_scheduler_kwargs,
    )
    for step, rate in rates.items():
        step = steps - 1 if step < 0 else step
        assert arguments.learning_rate * schedule.lr_lambdas[0](step) == pytest.approx(rate, rel=1e-3, abs=1e-12), step


def test_comments_name_every_override():
    """What the recipes offer is what is tested here."""
    offered = {}
    for recipe in ("us_tokenizer", "dualspeech", "dualspeech_vicuna"):
        text = (RECIPES / f"{recipe}.yaml").read_text()
        text = re.sub(r"\n#? +", " ", "\n".join(line for line in text.splitlines() if line.startswith("#")))
        offered[recipe] = text
    for override in VARIANTS:
        assert all(override in offered[recipe] for recipe in DUALSPEECH), override
    for override in TOKENIZER_ABLATIONS:
        assert override in offered["us_tokenizer"]


@pytest.mark.parametrize("override", with_slow(VARIANTS, "--variant baseline_acoustic --max_steps 160000"))
def test_models_and_ablations_of_dualspeech(override, trained, tmp_path):
    arguments = override.replace("--max_steps 160000", "").split()
    metrics, trainer = trained("dualspeech", tmp_path, *arguments, "--max_steps", 1, "--tiny_rows", 8)
    assert math.isfinite(metrics["train_loss"])
    config = trainer.model.config
    for name, value in VARIANTS[override].items():
        assert getattr(config, name) == value, name
    attention = None if config.acoustic_config is None else config.acoustic_config.condition_attention
    assert attention == {"--official_parity": "bidirectional"}.get(override, None if attention is None else "causal")
    assert trainer.model.peft_config["default"].r == 16
    if config.acoustic_config is None:
        assert not any("acoustic" in name for name in metrics)
        codes = [i - config.semantic_token_offset for row in trainer.train_dataset["input_ids"] for i in row]
        codes = {code for code in codes if 0 <= code < config.semantic_codebook_size}
        # 48 codes of the tiny codec, of which the tokens of speech are made; 32 of the tiny HuBERT.
        assert config.semantic_codebook_size == (48 if "baseline_acoustic" in override else 32) and len(codes) > 3


@pytest.mark.slow
def test_weight_zero_takes_the_semantic_loss_out(trained, tmp_path):
    _, trainer = trained("dualspeech", tmp_path, "--semantic_loss_weight", 0, "--max_steps", 2, "--logging_steps", 1)
    for entry in trainer.state.log_history:
        if "loss" in entry and "semantic_loss" in entry:
            parts = entry.get("text_loss", 0) + entry.get("acoustic_loss", 0)
            assert entry["loss"] == pytest.approx(parts, rel=1e-2)


@pytest.mark.parametrize("override", with_slow(TOKENIZER_ABLATIONS, "--official_parity"))
def test_ablations_of_the_us_tokenizer(override, trained, tmp_path):
    metrics, trainer = trained("us_tokenizer", tmp_path, *override.split(), "--max_steps", 1, "--tiny_rows", 12)
    assert math.isfinite(metrics["train_loss"])
    config = trainer.model.config
    for name, value in TOKENIZER_ABLATIONS[override].items():
        assert getattr(config, name, getattr(config.us_tokenizer_config, name, None)) == value, name
    collator = trainer.data_collator
    parity = override == "--official_parity"
    assert (collator.padding, collator.max_text_length) == (("middle", 300) if parity else ("right", None))


def moss_before(seed=42):
    tiny = load_example("tiny_moss_speech")
    return dict(tiny.tiny_moss_model(tiny.tiny_moss_tokenizer(), seed).named_parameters())


SPEECH = ("audio_embed.", "audio_block.", "audio_norm.", "audio_lm_head.")


@pytest.mark.parametrize(
    ("recipe", "moving"),
    [("moss_stage1", SPEECH), ("moss_stage2_shared", (*SPEECH, "shared_block.")), ("moss_stage2_full", ("",))],
)
def test_stages_move_what_they_say(recipe, moving, tmp_path):
    """In stage 1 every parameter of the text model stays as it is, bit for bit."""
    train(recipe, tmp_path, "--max_steps", 3, "--tiny_rows", 12)
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").named_parameters())
    before = moss_before()
    assert before.keys() == after.keys()
    for name, value in before.items():
        moves = any(part in name for part in moving)
        assert torch.equal(value, after[name]) != moves, name


def test_layers_unfreeze_by_the_schedule(monkeypatch, tmp_path):
    """After each step, exactly the layers with a rate above zero have moved."""
    module, states = load_example("train_moss_speech"), []

    class Watching(module.SpeechTrainer):
        def training_step(self, model, *args, **kwargs):
            states.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
            self.schedule = self.unfreezing
            return super().training_step(model, *args, **kwargs)

    trainers = []
    run = module.run
    monkeypatch.setattr(module, "SpeechTrainer", Watching)
    monkeypatch.setattr(module, "run", lambda trainer, *args: trainers.append(trainer) or run(trainer, *args))
    train("moss_stage2_layerwise", tmp_path, "--max_steps", 10, module=module)
    schedule = trainers[0].unfreezing
    assert (schedule.num_layers, schedule.delay_steps, schedule.warmup_steps) == (2, 4, 3)
    states.append(dict(trainers[0].model.named_parameters()))
    for step in range(10):
        for name, value in states[step].items():
            if not any(part in name for part in (*SPEECH, "shared_block.")):
                expected = 0.0
            else:
                layer = schedule.layer_of(name)
                expected = schedule.multiplier(step, 1 if layer is None else layer, 10)
            assert torch.equal(value, states[step + 1][name]) != (expected > 0), (step, name)


def test_no_split_has_one_vocabulary(trained, tmp_path):
    _, trainer = trained("moss_nf_nosplit", tmp_path, "--max_steps", 1, "--tiny_rows", 12)
    config = trainer.model.config
    assert config.num_modality_layers == 0 and config.num_shared_layers == 2
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    _, trainer = trained("moss_nf", tmp_path, "--max_steps", 1, "--tiny_rows", 12)
    assert trainer.model.config.num_modality_layers == 1
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_unknown_recipes_and_arguments(tmp_path):
    module = load_example("train_moss_speech")
    with pytest.raises(ValueError, match="`recipe` 'moss_stage9' does not exist"):
        module.main(["--recipe", "moss_stage9", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"is for examples/train_us_tokenizer\.py"):
        module.main(["--recipe", "us_tokenizer", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="`variant` is 'wavlm'; accepted are ustoken, hubert"):
        train("dualspeech", tmp_path, "--variant", "wavlm")
    with pytest.raises(ValueError, match=r"`policy` .* leaves no parameter"):
        train("moss_stage1", tmp_path, "--freezing", r"^speech$")
    with pytest.raises(ValueError, match=r"must name the parts of the data, which are \['rows'\]"):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"chunks": ["hello"]}\n')
        train("moss_stage1", tmp_path, "--train_data", path)


@pytest.mark.slow
def test_stages_follow_each_other(tmp_path):
    """Stage 1 from files, stage 2 from its checkpoint, resumed after its first half."""
    for name, rows in {
        "speech": [{"chunks": ["one red", {"type": "audio", "codes": [1, 2, 3, i]}]} for i in range(12)],
        "text": [{"chunks": [f"two trees {'a' * i}"]} for i in range(1, 30)],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speech, text = (f"{name}={tmp_path / f'{name}.jsonl'}" for name in ("speech", "text"))
    train("moss_stage1", tmp_path / "stage1", "--train_data", speech, "--eval_data", speech, "--max_steps", 4)
    data = ["--train_data", f"{speech},{text}", "--checkpoint", tmp_path / "stage1", "--save_strategy", "steps"]
    settings = [*data, "--save_steps", 3, "--context_length", 64, "--max_steps", 6]
    train("moss_stage2_full", tmp_path / "whole", *settings)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="float32").state_dict()
    for file in (tmp_path / "whole" / "checkpoint-6").iterdir():
        file.unlink()  # a run that was killed while it saved
    train("moss_stage2_full", tmp_path / "whole", *settings, "--resume_from_checkpoint", "auto")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="float32").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
def test_packing_and_length_grouping_train_dualspeech(trained, tmp_path):
    metrics, trainer = trained("dualspeech", tmp_path / "packed", "--packing", "--max_steps", 2)
    assert math.isfinite(metrics["train_loss"]) and trainer.train_dataset.context_length == 256
    grouped = ["--train_sampling_strategy", "group_by_length", "--max_steps", 2, "--lora_r", 0]
    metrics, trainer = trained("dualspeech", tmp_path / "grouped", *grouped)
    assert math.isfinite(metrics["train_loss"])
    assert AutoModelForMultimodalLM.from_pretrained(tmp_path / "grouped").config.coc_probabilities
