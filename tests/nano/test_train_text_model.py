"""Training of the small text model: a few steps, what is saved, and going on where a training stopped."""

import pytest
import torch
from nano_grammar import draw_frames
from nano_lexicon import LANGUAGES
from nano_texts import CHAT_TOKENS, START_TOKEN
from safetensors.torch import load_file
from train_text_model import look_back, main
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from .corpora import write_rows

SIZES = {"vocab_size": 700, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "per_device_train_batch_size": 4, "warmup_steps": 1, "logging_steps": 1}
SIZES |= {"eval_steps": 100, "save_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for split, scale in (("train", 0.01), ("validation", 0.001)):
        write_rows(folder / split, split, scale)
    return folder


@pytest.fixture(scope="module")
def train(corpus, tmp_path_factory):
    """`train(name, **arguments)` runs the script; returns the output folder and the metrics."""
    root = tmp_path_factory.mktemp("trained")

    def run(name, **kwargs):
        given = SIZES | {"max_steps": 4, "output_dir": root / name} | kwargs
        given |= {"train_data": corpus / "train", "eval_data": corpus / "validation"}
        command = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        return root / name, main([*command, "--use_cpu", "--disable_tqdm", "true"])

    return run


@pytest.fixture(scope="module")
def trained(train):
    """Output folder and metrics of four steps."""
    return train("whole")


def test_output_loads(trained):
    folder, metrics = trained
    assert metrics["train_loss"] > 0 and metrics["eval_loss"] > 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert type(model) is Qwen3ForCausalLM and model.dtype == torch.float32
    assert config.vocab_size == len(tokenizer) <= SIZES["vocab_size"] and config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(config, name) == getattr(tokenizer, name), name
        assert getattr(model.generation_config, name) == getattr(tokenizer, name), name
    ids = tokenizer("Tom buys", return_tensors="pt")["input_ids"]
    reply = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert reply.shape[1] <= ids.shape[1] + 3


def test_special_tokens(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<|endoftext|>",
        START_TOKEN,
        "<|im_end|>",
    )
    assert tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == list(range(len(CHAT_TOKENS)))
    for token in CHAT_TOKENS:
        assert tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"].count(tokenizer.convert_tokens_to_ids(token)) == 1  # fmt: skip
    ids = tokenizer("<|im_start|>user\nTom<|im_end|>\n")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nTom\n"


def test_decoded_ids_are_the_text(trained):
    """Of every sentence in four languages, also of splits and letters that no training text has."""
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    texts = ["x\ny  z ", "¿Qué? «Ärger» ß œ 7 !", " a | b .", "don't , no 's"]
    for split in ("train", "test"):
        for frame in draw_frames(split, 150, seed=7):
            texts += [frame.text(language) for language in LANGUAGES if language == "en" or frame.kind != "digits"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_resumed_training_ends_with_the_same_weights(trained, train):
    folder = trained[0]
    whole = load_file(folder / "model.safetensors")
    resumed, _ = train("resumed", resume_from_checkpoint=folder / "checkpoint-2")
    again = load_file(resumed / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    before = load_file(folder / "checkpoint-2" / "model.safetensors")
    assert not all(torch.equal(whole[name], before[name]) for name in whole)
    assert (folder / "tokenizer.json").read_bytes() == (resumed / "tokenizer.json").read_bytes()


def test_going_on_with_a_model(trained, train):
    """As behind the drills: with the weights and the tokenizer of the folder."""
    folder = trained[0]
    drilled, _ = train("drills", texts="copying", max_steps=1)
    assert (drilled / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(ValueError, match="accepted are copying, reading, all"):
        train("nothing", texts="nothing")
    after, _ = train("after", checkpoint=folder, max_steps=1, learning_rate=0.0)
    first, second = (load_file(path / "model.safetensors") for path in (folder, after))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (after / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_new_model_looks_back():
    """The first head attends to the token before, wherever it stands (its few rotations come round further away)."""
    config = Qwen3Config(
        hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99
    )
    config.num_key_value_heads, config.head_dim, config._attn_implementation = 2, 32, "eager"
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    look_back(model)
    attentions = model(torch.randint(99, (2, 18)), output_attentions=True).attentions
    before = attentions[0][:, 0].diagonal(-1, dim1=1, dim2=2)
    assert before.min() > 0.8
    assert attentions[0][:, 1].diagonal(-1, dim1=1, dim2=2).mean() < 0.5
