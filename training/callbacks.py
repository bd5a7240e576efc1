"""Callbacks for `Trainer`: answers of the model written at each evaluation."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import unwrap_peft_model

from ..processing.audio import save_audio
from ..processing.tasks import TASKS


class SamplesCallback(TrainerCallback):
    """
    Lets the model answer some rows at each evaluation. `samples-<step>/` in the output folder then has `results.json`
    (row, text, finish reason, files) and for spoken answers a WAV file and a picture of its mel spectrogram; they are
    written to TensorBoard too where that is reported to.

    Random numbers of the training are left as they were, so that a run with samples equals one without.

    Args:
        processor ([`DualSpeechProcessor`] or [`MossSpeechProcessor`]): makes inputs and results; its audio tokenizer
            makes the sound.
        rows (sequence of mappings): task rows (`task` and its inputs) or chat rows (`messages`, and optionally
            `output_modality`); answers in them (`targets`, a last turn of the assistant) are not shown to the model,
            but give the voice where no `speaker` is given.
        folder (`str`, *optional*): where to write, instead of the output folder of the run.
        seed: of the sampling.
        plot: draw mel spectrograms.
        generate_kwargs: further arguments of `generate`.

    Raises:
        ValueError: no rows; or `plot` without matplotlib and librosa (`pip install "dualspeech[audio]"`).
    """

    def __init__(
        self,
        processor: Any,
        rows: Sequence[Mapping[str, Any]],
        folder: str | os.PathLike | None = None,
        seed: int = 0,
        plot: bool = True,
        **generate_kwargs,
    ):
        if not rows:
            raise ValueError("`rows` is empty; give the rows that the model is to answer")
        if plot:
            try:
                import librosa  # noqa: F401
                import matplotlib  # noqa: F401
            except ImportError as error:
                raise ValueError(
                    f"`plot` needs {error.name}: install dualspeech[audio], or give `plot=False`"
                ) from error
        self.processor = processor
        self.rows = [dict(row) for row in rows]
        self.folder = folder
        self.seed = seed
        self.plot = plot
        self.generate_kwargs = generate_kwargs
        self._step = None

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.global_step == self._step:  # once, though each task is evaluated apart
            return
        self._step = state.global_step
        if not state.is_world_process_zero and not is_sharded(model):  # every process has to run a sharded model
            return
        results = self._answers(model)
        if state.is_world_process_zero:
            folder = Path(self.folder or args.output_dir) / f"samples-{state.global_step}"
            write_samples(folder, self.rows, results, self.plot)
            if "tensorboard" in (args.report_to or ()):
                self._report(args.output_dir, state.global_step, folder)

    @torch.no_grad()
    def _answers(self, model) -> list[Any]:
        was_training = model.training
        model.eval()
        devices = [] if model.device.type == "cpu" else [model.device]
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.seed)
                results = []
                for row in self.rows:
                    inputs = _inputs(self.processor, row).to(model.device)
                    output = unwrap_peft_model(model).generate(**inputs, **self.generate_kwargs)
                    results += self.processor.batch_decode(output)
            return results
        finally:
            model.train(was_training)

    def _report(self, output_dir: str, step: int, folder: Path) -> None:
        import soundfile
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(os.path.join(output_dir, "samples")) as writer:
            for number, entry in enumerate(json.loads((folder / "results.json").read_text(encoding="utf-8"))):
                if entry["text"]:
                    writer.add_text(f"samples/{number}", entry["text"], step)
                if entry["audio"]:
                    samples, rate = soundfile.read(folder / entry["audio"], dtype="float32")
                    writer.add_audio(f"samples/{number}", torch.from_numpy(samples)[None], step, sample_rate=rate)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether processes hold shards of the parameters (FSDP, ZeRO-3, tensor parallelism), and run the model together."""
    # `placements` are those of a DTensor, `ds_id` is that of DeepSpeed; FSDP1 wraps modules.
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    return wrapped or any(hasattr(p, "placements") or hasattr(p, "ds_id") for p in model.parameters())


def _inputs(processor: Any, row: Mapping[str, Any]):
    if "messages" not in row:
        ignored = ("targets", "id", "metadata", "source", "length")
        inputs = {name: value for name, value in row.items() if name not in ignored and value is not None}
        targets = row.get("targets")
        if isinstance(targets, Mapping) and TASKS[row["task"]].output == "speech" and "speaker" not in inputs:
            inputs["speaker"] = targets.get("speaker_embeds", targets.get("audio"))  # the voice that training takes
        return processor(**inputs)
    messages = list(row["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return processor([messages], [row.get("output_modality") or "audio"])


def write_samples(
    folder: str | os.PathLike, rows: Sequence[Mapping[str, Any]], results: Sequence[Any], plot: bool = True
) -> None:
    """
    `results.json`, and `<number>.wav` and `<number>.png` of the spoken ones.

    Args:
        folder: made if it does not exist.
        rows: what was asked; entries that are no JSON (arrays) are left out.
        results ([`DualSpeechResult`] or [`MossSpeechResult`]): one per row.
        plot: draw mel spectrograms.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        entry = {"row": _plain(row), "text": result.text, "finish_reason": result.finish_reason, "audio": None}
        if result.audio is not None and len(result.audio):
            entry["audio"] = f"{number}.wav"
            save_audio(folder / entry["audio"], result.audio, result.sampling_rate)
            if plot:
                plot_mel(folder / f"{number}.png", result.audio, result.sampling_rate)
        entries.append(entry)
    (folder / "results.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False), encoding="utf-8")


def plot_mel(path: str | os.PathLike, audio: np.ndarray, sampling_rate: int) -> None:
    """Picture (PNG) of the mel spectrogram of `audio` `[S]`, in dB below its maximum."""
    import librosa
    from matplotlib.figure import Figure

    hop = sampling_rate // 100
    samples = np.asarray(audio, np.float32)
    samples = np.pad(samples, (0, max(0, 2048 - len(samples))))  # one frame at least
    mel = librosa.feature.melspectrogram(y=samples, sr=sampling_rate, hop_length=hop, n_mels=80)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    extent = (0, len(samples) / sampling_rate, 0, sampling_rate / 2000)
    level = librosa.power_to_db(mel, ref=np.max)
    image = axes.imshow(level, origin="lower", aspect="auto", extent=extent, vmin=-80, vmax=0)
    axes.set(xlabel="seconds", ylabel="mel bins up to kHz")
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(path)


def _plain(value: Any) -> Any:
    """`value` without what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else f"<{type(value).__name__}>"


__all__ = ["SamplesCallback", "is_sharded", "plot_mel", "write_samples"]
