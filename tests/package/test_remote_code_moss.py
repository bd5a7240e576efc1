"""A MOSS-Speech checkpoint that carries its own code loads where `dualspeech` cannot be imported."""

import json
import textwrap

import pytest

from dualspeech.remote_code import bundle_remote_code
from tests.examples.running import load_example
from tests.package.running import interpreter_without_package, run_python
from tests.processing.moss_processor_cases import fitting_model, tiny_moss_processor

# What the checkpoint says, in any process.
ANSWER = """
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
model, info = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True, output_loading_info=True)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
chat = [{{"role": "user", "content": {{"type": "audio", "codes": [3, 9, 9, 20]}}}}]
inputs = processor([chat, "one red house"], ["audio", "audio"])
output = model.generate(**inputs, do_sample=False, max_new_tokens=12)
results = processor.batch_decode(output)
import json
import textwrap
print(json.dumps([[r.codes.tolist(), len(r.audio), round(float(abs(r.audio).sum()), 2), r.finish_reason] for r in results]))
base = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
print(type(base).__name__, type(processor.audio_tokenizer).__name__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moss") / "tiny"
    load_example("tiny_moss_speech").make_moss_checkpoint(folder)
    return folder


@pytest.mark.slow
def test_model_processor_and_codec_without_the_package(folder, tmp_path):
    code = ANSWER.format(folder=str(folder))
    expected = run_python(f"import dualspeech\n{code}", cwd=tmp_path).splitlines()[-2:]
    assert expected[1] == "SplitLayerQwen3Model MossSpeechCodecModel"
    bundle_remote_code(folder)
    alone = interpreter_without_package(tmp_path / "alone")
    check = "import importlib.util\nassert importlib.util.find_spec('dualspeech') is None\n"
    said = run_python(check + code, python=alone, cwd=tmp_path, HF_HOME=str(tmp_path / "home")).splitlines()[-2:]
    assert json.loads(said[0]) == json.loads(expected[0])
    assert said[1] == expected[1]


RELEASED_MAP = {
    "AutoConfig": "configuration_moss_speech.MossSpeechConfig",
    "AutoModel": "modeling_moss_speech.MossSpeechForCausalLM",
    "AutoProcessor": "processing_moss_speech.MossSpeechProcessor",
}


@pytest.fixture
def released_folder(tmp_path):
    """Laid out like the release: a model and a tokenizer, no file of a processor, an `auto_map` to its own code."""
    processor = tiny_moss_processor()
    folder = tmp_path / "released"
    fitting_model(processor).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": RELEASED_MAP}))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_folder_laid_out_like_the_release_keeps_its_processor(released_folder, tmp_path):
    code = f"""
        from transformers import AutoProcessor
        processor = AutoProcessor.from_pretrained({str(released_folder)!r}, trust_remote_code=True)
        print(type(processor).__name__, processor.row_ids, processor(["one red house"])["input_ids"].tolist())
    """
    expected = run_python(f"import dualspeech\n{textwrap.dedent(code)}", cwd=tmp_path).splitlines()[-1]
    assert expected.startswith("MossSpeechProcessor")
    bundle_remote_code(released_folder)
    bundle_remote_code(released_folder)
    auto_map = json.loads((released_folder / "config.json").read_text())["auto_map"]
    assert auto_map["AutoProcessor"] == "processing_moss_speech.MossSpeechProcessor"
    alone = interpreter_without_package(tmp_path / "alone")
    assert run_python(code, python=alone, cwd=tmp_path, HF_HOME=str(tmp_path / "home")).splitlines()[-1] == expected


def test_entries_that_are_lost_are_named(released_folder):
    for path in released_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.warns(UserWarning, match=r"config.json: `auto_map` loses \['AutoProcessor'\], for which the folder"):
        bundle_remote_code(released_folder)
    assert "AutoProcessor" not in json.loads((released_folder / "config.json").read_text())["auto_map"]
