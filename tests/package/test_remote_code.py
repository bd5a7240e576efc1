"""Checkpoints that carry their own code load where `dualspeech` cannot be imported."""

import ast
import json
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

from dualspeech import CamPPlusModel, KaldiFbankFeatureExtractor, remote_code
from dualspeech.remote_code import bundle_remote_code
from tests.modeling.tiny_audio_parts import campplus, hubert, us_tokenizer
from tests.package.hub_cases import answers, answers_elsewhere, tiny_pair
from tests.package.running import ROOT, interpreter_without_package, run_python

ALONE = "import importlib.util; assert importlib.util.find_spec('dualspeech') is None"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """An interpreter that cannot import this package."""
    return interpreter_without_package(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A bundled folder, and what its model answers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("remote") / "tiny"
    model, processor = tiny_pair()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    expected = answers(model, processor)
    bundle_remote_code(folder)
    return folder, expected


def test_model_and_processor_without_the_package(checkpoint, alone, tmp_path):
    folder, expected = checkpoint
    code = f"""
        {ALONE}
        from transformers import AutoModelForMultimodalLM, AutoProcessor
        model, info = AutoModelForMultimodalLM.from_pretrained(
            {str(folder)!r}, trust_remote_code=True, output_loading_info=True
        )
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
        assert type(processor).__module__.startswith("transformers_modules.")
        model.save_pretrained("again")
        processor.save_pretrained("again")
    """
    home = {"python": alone, "cwd": tmp_path, "HF_HOME": str(tmp_path / "home")}
    assert answers_elsewhere(code, **home) == expected
    # what was saved there carries its code on
    again = f"""
        {ALONE}
        from transformers import AutoModelForTextToWaveform, AutoProcessor
        model = AutoModelForTextToWaveform.from_pretrained("again", trust_remote_code=True)
        processor = AutoProcessor.from_pretrained("again", trust_remote_code=True)
    """
    shutil.rmtree(tmp_path / "home")
    assert answers_elsewhere(again, **home) == expected


@pytest.mark.slow
@pytest.mark.parametrize("where", ["'tiny', subfolder='audio_tokenizer'", "'tiny/audio_tokenizer'"])
def test_audio_tokenizer_by_itself(checkpoint, alone, tmp_path, where):
    folder, _ = checkpoint
    shutil.copytree(folder, tmp_path / "tiny")
    out = run_python(
        f"""
        {ALONE}
        import torch
        from transformers import AutoConfig, AutoModel
        config = AutoConfig.from_pretrained({where}, trust_remote_code=True)
        model = AutoModel.from_pretrained({where}, trust_remote_code=True)
        torch.manual_seed(0)
        print(model.encode(codec_values=torch.randn(1, 4800)).acoustic_codes.tolist())
        print(type(model).__name__, type(model.semantic_tokenizer).__name__)
        """,
        python=alone,
        cwd=tmp_path,
        HF_HOME=str(tmp_path / "home"),
    )
    codes, names = out.splitlines()[-2:]
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder / "audio_tokenizer")
    torch.manual_seed(0)
    assert json.loads(codes) == model.encode(codec_values=torch.randn(1, 4800)).acoustic_codes.tolist()
    assert names == "DualTokenizerModel UsTokenizerModel"


@pytest.mark.slow
def test_model_with_its_feature_extractor(alone, tmp_path):
    campplus().save_pretrained(tmp_path / "speaker")
    KaldiFbankFeatureExtractor().save_pretrained(tmp_path / "speaker")
    bundle_remote_code(tmp_path / "speaker")
    out = run_python(
        f"""
        {ALONE}
        import numpy
        from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioXVector
        extractor = AutoFeatureExtractor.from_pretrained("speaker", trust_remote_code=True)
        features = extractor(numpy.sin(numpy.arange(8000) / 9), sampling_rate=16000, return_tensors="pt")
        for auto in AutoModelForAudioXVector, AutoModel:
            model = auto.from_pretrained("speaker", trust_remote_code=True)
        print(type(extractor).__name__, type(model).__name__, *model(**features).embeddings.shape)
        """,
        python=alone,
        cwd=tmp_path,
        HF_HOME=str(tmp_path / "home"),
    )
    assert out.splitlines()[-1] == "KaldiFbankFeatureExtractor CamPPlusModel 1 12"


def test_installed_classes_win(checkpoint):
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    folder, expected = checkpoint
    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__ == "dualspeech.modeling.modeling_dualspeech"
    assert type(processor).__module__ == "dualspeech.processing.processing_dualspeech"
    assert answers(model, processor) == expected


def test_bundled_files_import_only_each_other(checkpoint):
    folder, _ = checkpoint
    for part in (folder, folder / "audio_tokenizer"):
        for path in part.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1 and (part / f"{node.module}.py").is_file(), (path, node.module)
                elif isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    assert all(name.split(".")[0] != "dualspeech" for name in names)
    nested = json.loads((folder / "config.json").read_text())["auto_map"]
    assert nested["AutoModelForMultimodalLM"] == "modeling_dualspeech.DualSpeechForConditionalGeneration"


def test_bundling_again_changes_nothing(checkpoint):
    folder, _ = checkpoint
    bundle_remote_code(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = bundle_remote_code(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert set(written) <= set(before)


@pytest.mark.parametrize("model", [us_tokenizer, hubert], ids=["ours", "another's"])
def test_only_what_is_ours(tmp_path, model):
    model().save_pretrained(tmp_path)
    if model is hubert:
        before = {path.name for path in tmp_path.iterdir()}
        with pytest.raises(
            ValueError, match=r"`folder` .* holds neither a config.json of a model type of this package"
        ):
            bundle_remote_code(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == before
    else:
        names = {path.name for path in bundle_remote_code(tmp_path)}
        assert {"config.json", "configuration_us_tokenizer.py", "modeling_us_tokenizer.py"} <= names
        assert "modeling_dualspeech.py" not in names and "remote_registration.py" not in names


def fake_package(tmp_path, monkeypatch, **files):
    """A package of `files` (dotted module name with `__` for dots -> source) in the place of ours."""
    root = tmp_path / "fakespeech"
    for name, source in files.items():
        path = (root / Path(*name.split("__"))).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "fakespeech"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(remote_code, "_PACKAGE", "fakespeech")
    monkeypatch.setattr(remote_code, "CONFIGS", {"fake": ("a.configuration_fake", "FakeConfig")})
    monkeypatch.setattr(remote_code, "CLASSES", {"AutoModel": {}, "AutoProcessor": {}, "AutoFeatureExtractor": {}})
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"model_type": "fake"}')
    return checkpoint


def test_every_form_of_import_is_flattened(tmp_path, monkeypatch):
    source = '''"""Text about `from ..b.two import x`."""
from ..b.two import (
    x,  # ä: a character of two bytes before the next import
    y as z,
)
def later():
    from .one import w; from ..b.deep.three import v
    return w, v
'''
    checkpoint = fake_package(
        tmp_path,
        monkeypatch,
        a__configuration_fake=source,
        a__one="w = 1\n",
        b__two="from .deep.three import v as x\ny = 2\n",
        b__deep__three="try:\n    import torchaudio\nexcept ImportError:\n    torchaudio = None\nv = 3\n",
    )
    written = {path.name for path in bundle_remote_code(checkpoint)}
    assert written == {"config.json", "configuration_fake.py", "one.py", "two.py", "three.py"}
    flat = (checkpoint / "configuration_fake.py").read_text()
    assert flat.split("\n", 1)[1] == source.replace("\nfrom ..b.two", "\nfrom .two").replace(
        "..b.deep.three", ".three"
    )
    assert "from .three import v as x" in (checkpoint / "two.py").read_text()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {
                "a__configuration_fake": "from ..b.same import x\nfrom ..c.same import y\n",
                "b__same": "x = 1\n",
                "c__same": "y = 1\n",
            },
            "same name",
        ),
        ({"a__configuration_fake": "from . import one\n", "a__one": ""}, "imports from a package"),
        ({"a__configuration_fake": "from ..b import two\n", "b__two": ""}, "is a package"),
        ({"a__configuration_fake": "def f():\n    import sklearn\n"}, r"imports \['sklearn'\] outside of a `try`"),
        (
            {"a__configuration_fake": "from fakespeech.b.two import x\n", "b__two": "x = 1\n"},
            r"imports \['fakespeech'\]",
        ),
    ],
)
def test_what_cannot_be_flattened_is_refused_and_nothing_is_written(tmp_path, monkeypatch, files, message):
    checkpoint = fake_package(tmp_path, monkeypatch, **files)
    with pytest.raises(ValueError, match=message):
        bundle_remote_code(checkpoint)
    assert [path.name for path in checkpoint.iterdir()] == ["config.json"]
    assert (checkpoint / "config.json").read_text() == '{"model_type": "fake"}'


def test_required_imports_are_the_dependencies():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split()
    assert sorted(remote_code._REQUIRED) == sorted(line.split(">")[0] for line in wanted)


@pytest.mark.slow
def test_every_registered_class_can_be_bundled(tmp_path):
    """No module of the package breaks the rules of flat bundles."""
    for model_type in remote_code.CONFIGS:
        folder = tmp_path / model_type
        folder.mkdir()
        nested = {name: {"model_type": name} for name in remote_code.CONFIGS}
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **nested}))
        assert bundle_remote_code(folder)
    assert CamPPlusModel.__name__ in (tmp_path / "campplus" / "config.json").read_text()
