"""Checkpoints of a training run pushed to a Hub, with the real client."""

import pytest
import torch
from transformers import TrainingArguments

from dualspeech.hub_callback import PushToHubCallback
from tests.hub_server import HubServer
from tests.package.hub_cases import answers, answers_elsewhere, tiny_pair
from tests.package.running import run_python

TRAIN = """
import dualspeech, torch
from transformers import Trainer, TrainingArguments
from dualspeech import PushToHubCallback
from tests.package.hub_cases import tiny_pair

torch.manual_seed(0)
model, processor = tiny_pair()
rows = [{{"input_ids": [1, 5, 6, 7], "labels": [1, 5, 6, 7]}}] * 8
arguments = TrainingArguments(
    {folder!r}, max_steps=3, save_steps=1, learning_rate=1e-2, use_cpu=True, report_to="none", label_names=["labels"],
    remove_unused_columns=False, save_total_limit=1,
)
callback = PushToHubCallback("user/run", processor=processor, every=2, private=True)
Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
"""


@pytest.mark.slow
def test_checkpoints_are_pushed_without_what_only_resuming_needs(tmp_path):
    with HubServer() as hub:
        run_python(TRAIN.format(folder=str(tmp_path / "run")), **hub.environment(tmp_path / "pushing"))
        files = set(hub.repositories["user/run"].files())
        load = """
        import dualspeech
        from transformers import AutoModelForMultimodalLM, AutoProcessor
        model = AutoModelForMultimodalLM.from_pretrained("user/run")
        processor = AutoProcessor.from_pretrained("user/run")
        """
        found = answers_elsewhere(load, **hub.environment(tmp_path / "loading"))
    assert {"model.safetensors", "config.json", "README.md", "audio_tokenizer/model.safetensors"} <= files
    assert not [name for name in files if name.startswith(("optimizer", "scheduler", "rng_state", "trainer_state"))]
    torch.manual_seed(0)
    fresh = answers(*tiny_pair())
    assert found["weights"] != fresh["weights"]


class Saving:
    """What the Trainer hands to a callback."""

    is_world_process_zero, global_step = True, 1


def test_a_failing_push_ends_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-1"
    tiny_pair()[0].save_pretrained(folder)
    monkeypatch.setattr("dualspeech.hub_callback.push_to_hub", lambda *_, **__: 1 / 0)
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    with pytest.warns(UserWarning, match="step 1 was not pushed to user/run: division by zero"):
        PushToHubCallback("user/run").on_save(arguments, Saving, None)
    (folder / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="step 1 was not pushed to user/run: the checkpoint has no safetensors"):
        PushToHubCallback("user/run").on_save(arguments, Saving, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1"}

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk is full")

    (folder / "model.safetensors").write_bytes(b"weights")
    with pytest.warns(UserWarning, match="step 1 was not pushed to user/run: disk is full"):
        PushToHubCallback("user/run", processor=Broken()).on_save(arguments, Saving, None)
    with pytest.raises(ValueError, match="`every` must be at least 1, got 0"):
        PushToHubCallback("user/run", every=0)
