"""The any-to-any pipeline of transformers on a tiny checkpoint."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from tests.package.hub_cases import tiny_pair
from tests.tiny import tone


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model, processor = tiny_pair()
    processor.speakers = {"anna": np.full(12, 0.5)}
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    soundfile.write(folder / "speech.wav", tone(0.5), 16000)
    return folder


def test_any_to_any(checkpoint):
    pipe = pipeline("any-to-any", model=str(checkpoint))
    torch.manual_seed(0)
    recording = str(checkpoint / "speech.wav")
    (spoken,) = pipe({"text": "", "audio": recording}, processor_kwargs={"task": "asr"}, max_new_tokens=6)
    torch.manual_seed(0)
    (again,) = pipe(text="", audio=recording, task="asr", max_new_tokens=6)
    assert spoken == again and spoken["input_text"] == "" and isinstance(spoken["generated_text"], str)
    inputs = pipe.processor(task="asr", audio=recording)
    torch.manual_seed(0)
    output = pipe.model.generate(**inputs, max_new_tokens=6)
    assert pipe.processor.batch_decode(output)[0].text == spoken["generated_text"]

    voiced = pipe(["ab", "cd"], task="tts", speaker="anna", generation_mode="audio", max_new_tokens=12)
    assert [row["input_text"] for row in voiced] == ["ab", "cd"]
    for row in voiced:
        assert row["generated_audio"].dtype == np.float32 and row["generated_audio"].ndim == 1
    with pytest.raises(ValueError, match="`task` is None; accepted are 'asr'"):
        pipe("ab")
