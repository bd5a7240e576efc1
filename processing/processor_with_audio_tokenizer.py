"""A processor with an audio tokenizer at its side, loaded when it is needed and saved with the processor."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import create_repo, snapshot_download
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

AUDIO_SUBFOLDER = "audio_tokenizer"
_HUB_ARGUMENTS = ("cache_dir", "revision", "token", "local_files_only")


class AudioTokenizerReference:
    """A model, or the place of a checkpoint from which it is loaded on first use.

    A pickle of it holds the place and how the model was loaded from there, so it is the same before and after the first
    use and another process loads the model anew. Without a place it holds the class, configuration and weights.

    Args:
        model (`PreTrainedModel`, *optional*): a model that is there already.
        location (`dict`, *optional*): `pretrained_model_name_or_path`, `subfolder` and the Hub arguments of
            `from_pretrained`.
    """

    def __init__(self, model: PreTrainedModel | None = None, location: dict[str, Any] | None = None):
        self.model = model
        self.location = location
        self.loading = {}  # arguments of `load` for the model that is kept, if they were given

    def __deepcopy__(self, memo):
        return self  # a copied processor shares the frozen model

    def __getstate__(self):
        state = self.__dict__ | {"model": None}
        if self.model is not None and self.location is None:
            # The model itself cannot be pickled: its weight norms are made of classes that have no name.
            weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
            state["parts"] = (type(self.model), self.model.config, weights)
        return state

    def __setstate__(self, state):
        parts = state.pop("parts", None)
        self.__dict__.update(state)
        if parts is not None:
            model_class, config, weights = parts
            self.model = model_class(config).eval()
            self.model.load_state_dict(weights, assign=True)  # with the precision that they have

    def __bool__(self):
        return self.model is not None or self.location is not None

    def load(self, device: str | torch.device | None = None, **kwargs) -> PreTrainedModel:
        """The model of the checkpoint, loaded anew and not kept; `kwargs` go to `AutoModel.from_pretrained`."""
        # A LoRA adapter in the root of the checkpoint is not one of this model.
        kwargs = {"adapter_kwargs": {"subfolder": self.location["subfolder"]}, **self.location, **kwargs}
        model = AutoModel.from_pretrained(**kwargs).eval()
        return model if device is None else model.to(device)

    def config_at_hand(self) -> PreTrainedConfig | None:
        """The configuration of the model, if that is loaded or its checkpoint lies in a local folder."""
        if self.model is not None:
            return self.model.config
        if self.location is None:
            return None
        folder = Path(self.location["pretrained_model_name_or_path"], self.location["subfolder"])
        return AutoConfig.from_pretrained(**self.location) if (folder / "config.json").is_file() else None

    def save(self, folder: Path, **kwargs) -> None:
        """Write the model to `folder`; one that was never loaded is copied as files."""
        if self.model is not None:
            self.model.save_pretrained(folder, **kwargs)
        elif self.location is not None:
            shutil.copytree(self._files(), folder)

    def _files(self) -> Path:
        name, subfolder = str(self.location["pretrained_model_name_or_path"]), self.location["subfolder"]
        root = Path(name)
        if not root.is_dir():
            arguments = {key: self.location[key] for key in _HUB_ARGUMENTS if key in self.location}
            root = Path(snapshot_download(name, allow_patterns=f"{subfolder}/*", **arguments))
        folder = root / subfolder
        if not (folder / "config.json").is_file():
            raise ValueError(f"the checkpoint {name!r} has no audio tokenizer in its folder {subfolder!r}")
        return folder


class ProcessorWithAudioTokenizer(ProcessorMixin):
    """Base of processors whose audio tokenizer lives in the sub-folder `audio_tokenizer/` of their checkpoint.

    It is no component of the `ProcessorMixin`, which would load it at once and accepts three classes only. A subclass
    takes `audio_subfolder=None` and `audio_tokenizer=None` in `__init__`, hands them to `_set_audio_tokenizer`, and
    defines `_check_audio_tokenizer`.
    """

    # Files of a checkpoint that some processors have and others lack.
    optional_files: tuple[str, ...] = ()

    def _set_audio_tokenizer(self, audio_tokenizer: PreTrainedModel | None, audio_subfolder: str | None) -> None:
        self.audio_subfolder = audio_subfolder
        self.audio_tokenizer = audio_tokenizer

    def _check_audio_tokenizer(self, model: PreTrainedModel) -> None:
        """Raise a `ValueError` if `model` does not fit this processor."""
        raise NotImplementedError

    def _save_optional_files(self, folder: Path) -> None:
        """Write those of `optional_files` that this processor has."""

    def _load_optional_file(self, path: Path) -> None:
        """Read one of `optional_files`."""

    @property
    def audio_tokenizer(self) -> PreTrainedModel | None:
        """The audio tokenizer, loaded now if it has not been; `None` when there is none."""
        if self._audio_tokenizer.model is None and self._audio_tokenizer:
            self.load_audio_tokenizer(**self._audio_tokenizer.loading)
        return self._audio_tokenizer.model

    @audio_tokenizer.setter
    def audio_tokenizer(self, model: PreTrainedModel | None):
        if model is not None:
            self._check_audio_tokenizer(model)
        self._audio_tokenizer = AudioTokenizerReference(model)

    def load_audio_tokenizer(
        self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None, **kwargs
    ) -> PreTrainedModel:
        """Load the audio tokenizer of the checkpoint, with a device and a precision.

        Args:
            device (*optional*): where it runs; the CPU if not given.
            dtype (*optional*): as in `from_pretrained`.
            kwargs: further arguments of `AutoModel.from_pretrained`.

        Raises:
            ValueError: the processor was not loaded from a checkpoint with an audio tokenizer, or that one does not fit.
        """
        if self._audio_tokenizer.location is None:
            raise ValueError(
                "this processor was not loaded from a checkpoint with an audio tokenizer; set "
                "`processor.audio_tokenizer` to a model"
            )
        place = {"device": device, "dtype": dtype}
        given = kwargs | {name: value for name, value in place.items() if value is not None}
        model = self._audio_tokenizer.load(**given)
        self._check_audio_tokenizer(model)
        self._audio_tokenizer.model, self._audio_tokenizer.loading = model, given
        return model

    def _required_audio_tokenizer(self, purpose: str) -> PreTrainedModel:
        model = self.audio_tokenizer
        if model is None:
            raise ValueError(f"an audio tokenizer is needed {purpose}; set `processor.audio_tokenizer` to a model")
        return model

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output["audio_subfolder"] = AUDIO_SUBFOLDER if self._audio_tokenizer else None
        return output

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Load a processor. Its audio tokenizer is loaded when it is first used, see `load_audio_tokenizer`."""
        audio_tokenizer = kwargs.pop("audio_tokenizer", None)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        source = os.fspath(pretrained_model_name_or_path)
        source = os.path.abspath(source) if os.path.isdir(source) else source
        subfolder = kwargs.get("subfolder") or ""
        hub_kwargs = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        if audio_tokenizer is not None:
            processor.audio_tokenizer = audio_tokenizer
        elif processor.audio_subfolder is not None:
            folder = f"{subfolder}/{processor.audio_subfolder}".removeprefix("/")
            location = {"pretrained_model_name_or_path": source, "subfolder": folder, **hub_kwargs}
            if kwargs.get("trust_remote_code") is not None:
                location["trust_remote_code"] = kwargs["trust_remote_code"]
            processor._audio_tokenizer = AudioTokenizerReference(location=location)
        for name in cls.optional_files:
            path = cached_file(
                source, name, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **hub_kwargs
            )
            if path is not None:
                processor._load_optional_file(Path(path))
        return processor

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write the processor and its audio tokenizer (loaded or not): all of it or nothing.

        Args:
            save_directory: the folder; created if need be.
            push_to_hub (`bool`, *optional*, defaults to `False`): upload what was written; `repo_id` defaults to the
                name of the folder.
            kwargs: `max_shard_size` for the audio tokenizer; `repo_id`, `commit_message`, `token` and other arguments
                of `create_repo` for the upload.
        """
        directory = Path(save_directory)
        max_shard_size = kwargs.pop("max_shard_size", None)
        if push_to_hub:
            directory.mkdir(parents=True, exist_ok=True)
            commit_message = kwargs.pop("commit_message", None)
            repo_id = create_repo(kwargs.pop("repo_id", directory.name), exist_ok=True, **kwargs).repo_id
            timestamps = self._get_files_timestamps(directory)
        with staged_folder(directory) as staging:
            files = super().save_pretrained(staging)
            self._audio_tokenizer.save(
                staging / AUDIO_SUBFOLDER, **({"max_shard_size": max_shard_size} if max_shard_size else {})
            )
            self._save_optional_files(staging)
            absent = [name for name in self.optional_files if not (staging / name).exists()]
        for name in absent:
            (directory / name).unlink(missing_ok=True)
        if push_to_hub:
            self._upload_modified_files(
                directory, repo_id, timestamps, commit_message=commit_message, token=kwargs.get("token")
            )
        return [str(directory / Path(file).name) for file in files]


@contextmanager
def staged_folder(directory: Path) -> Iterator[Path]:
    """A temporary folder inside `directory`; when the block ends its entries take the place of those of the same name,
    when the block fails they vanish."""
    existed = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    complete = False
    try:
        yield staging
        for entry in sorted(staging.iterdir()):
            target = directory / entry.name
            if target.is_dir():
                os.replace(target, staging / f".replaced-{entry.name}")
            os.replace(entry, target)
        complete = True
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not complete and not existed:
            directory.rmdir()


__all__ = ["AUDIO_SUBFOLDER", "AudioTokenizerReference", "ProcessorWithAudioTokenizer", "staged_folder"]
