"""Publishing to a Hub and loading from it, with the real client."""

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard

from dualspeech.hub import create_model_card, push_to_hub
from tests.hub_server import HubServer
from tests.modeling.tiny_audio_parts import campplus
from tests.package.hub_cases import answers, answers_elsewhere, tiny_pair
from tests.package.running import ROOT, interpreter_without_package, run_python


@pytest.fixture(scope="module")
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder, and what its model answers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    model, processor = tiny_pair()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, answers(model, processor)


LOAD = """
from transformers import AutoModelForMultimodalLM, AutoProcessor
where = {where!r}
model = AutoModelForMultimodalLM.from_pretrained(where, **{kwargs!r})
processor = AutoProcessor.from_pretrained(where, **{kwargs!r})
"""


@pytest.mark.slow
def test_methods_of_model_and_processor(hub, checkpoint, tmp_path):
    folder, expected = checkpoint
    push = LOAD.format(where=str(folder), kwargs={}) + (
        'model.push_to_hub("user/methods")\nprocessor.push_to_hub("user/methods")'
    )
    run_python("import dualspeech\n" + push, **hub.environment(tmp_path / "pushing"))
    files = hub.repositories["user/methods"].files()
    assert {
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "audio_tokenizer/model.safetensors",
    } <= set(files)
    assert not [name for name in files if name.endswith(".py")]
    load = "import dualspeech\n" + LOAD.format(where="user/methods", kwargs={})
    assert answers_elsewhere(load, **hub.environment(tmp_path / "loading")) == expected


def test_one_commit_with_card_and_code(hub, checkpoint, tmp_path):
    folder, expected = checkpoint
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    push = f"""
        from dualspeech.hub import create_model_card, push_to_hub
        card = create_model_card("user/tiny", config={{"model_type": "dualspeech"}}, base_models="user/base", language="en")
        print(push_to_hub({str(folder)!r}, "user/tiny", card=card).oid)
    """
    oid = run_python(push, **hub.environment(tmp_path / "pushing")).splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    repository = hub.repositories["user/tiny"]
    assert [summary for _, summary, _ in repository.commits] == ["initial commit", "Upload with dualspeech"]
    assert repository.find()[0] == oid
    card = ModelCard(repository.files()["README.md"].decode())
    assert (card.data.license, card.data.base_model, card.data.pipeline_tag) == (
        "apache-2.0",
        "user/base",
        "any-to-any",
    )
    # elsewhere, without the package
    load = "import importlib.util\nassert importlib.util.find_spec('dualspeech') is None\n"
    load += LOAD.format(where="user/tiny", kwargs={"trust_remote_code": True})
    python = interpreter_without_package(tmp_path / "venv")
    again = answers_elsewhere(load, python=python, cwd=tmp_path, **hub.environment(tmp_path / "loading"))
    assert again == expected


@pytest.mark.slow
def test_model_object_with_default_card(hub, tmp_path):
    model = campplus()
    model.save_pretrained(tmp_path / "speaker")
    code = f"""
        from transformers import AutoModel
        from dualspeech import hub
        model = AutoModel.from_pretrained({str(tmp_path / "speaker")!r})
        hub.push_to_hub(model, "user/speaker", bundle_code=False, commit_message="first")
    """
    run_python(code, **hub.environment(tmp_path / "home"))
    files = hub.repositories["user/speaker"].files()
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert "AutoModelForAudioXVector" in files["README.md"].decode()


def test_folder_and_processor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`processor` goes with a model"):
        push_to_hub(tmp_path, "user/tiny", processor=object())


def test_card_metadata_and_text():
    results = [EvalResult("automatic-speech-recognition", "tones", "Tones", "wer", 12.5, dataset_split="test")]
    card = create_model_card(
        "user/name",
        config={"model_type": "dualspeech"},
        base_models=["a/one", "b/two"],
        language=["en", "zh"],
        tags=["nano"],
        datasets="user/data",
        results=results,
        description="Speaks.",
        limitations="Few words.",
        training="One hour.",
    )
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.data.tags == ["dualspeech", "nano"]
    assert again.data.eval_results[0].metric_value == 12.5
    for text in ("# name", "Speaks.", "Few words.", "One hour.", "| Tones | test | wer | 12.5 |", "a/one", "b/two"):
        assert text in card.text, text
    assert "{{" not in card.text and "None" not in card.text


def test_card_of_an_unknown_model():
    card = create_model_card("user/name")
    assert "AutoModel.from_pretrained" in card.text and card.data.pipeline_tag is None
    assert (ROOT / "model_cards" / "template.md").is_file()
