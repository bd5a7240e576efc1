"""Publishing checkpoints: model cards, and one commit to the Hub with weights, processor and code."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, EvalResult, HfApi, ModelCard, ModelCardData

from .remote_code import bundle_remote_code, read_json, replace_text

_PACKAGE = __name__.rpartition(".")[0]

_AUTO_MODEL = 'model = AutoModel.from_pretrained("{model_id}")'
# model type -> (pipeline tag, usage example of the card)
_USAGE = {
    "dualspeech": (
        "any-to-any",
        """processor = AutoProcessor.from_pretrained("{model_id}")
model = AutoModelForMultimodalLM.from_pretrained("{model_id}")

inputs = processor(task="asr", audio="speech.wav")
print(processor.batch_decode(model.generate(**inputs))[0].text)

inputs = processor("Good morning.", task="tts", speaker="voice.wav")
result = processor.batch_decode(model.generate(**inputs))[0]  # result.audio at result.sampling_rate""",
    ),
    "acoustic_gpt": ("text-to-audio", 'model = AutoModelForCausalLM.from_pretrained("{model_id}")'),
    "dual_tokenizer": (
        "feature-extraction",
        """tokenizer = AutoModel.from_pretrained("{model_id}")
codes = tokenizer.encode(codec_values=waveforms).acoustic_codes
audio = tokenizer.decode(codes).audio_values""",
    ),
    "dualspeech_wavtokenizer": (
        "feature-extraction",
        """codec = AutoModel.from_pretrained("{model_id}")
codes = codec.encode(waveforms).audio_codes  # waveforms [B, 1, S]
audio = codec.decode(codes).audio_values""",
    ),
    "campplus": (
        "feature-extraction",
        """features = AutoFeatureExtractor.from_pretrained("{model_id}")
model = AutoModelForAudioXVector.from_pretrained("{model_id}")
vector = model(**features(waveform, sampling_rate=16000, return_tensors="pt")).embeddings""",
    ),
    "moss_speech": (
        "any-to-any",
        """processor = AutoProcessor.from_pretrained("{model_id}")
model = AutoModelForCausalLM.from_pretrained("{model_id}")

conversation = [{{"role": "user", "content": {{"type": "audio", "path": "question.wav"}}}}]
output = model.generate(**processor(conversation, "audio"))
result = processor.batch_decode(output, voice="voice.wav")[0]  # result.audio at result.sampling_rate""",
    ),
    "moss_speech_codec": (
        "feature-extraction",
        """codec = AutoModel.from_pretrained("{model_id}")
codes = codec.encode_waveform(waveforms).codes  # waveforms [B, S] at 16 kHz
audio = codec.decode(codes)  # [B, 1, samples] at 24 kHz""",
    ),
    "whisper_vq": (
        "feature-extraction",
        """model = AutoModel.from_pretrained("{model_id}")
codes = model.encode_waveform(waveforms).codes  # waveforms [B, S] at 16 kHz""",
    ),
    "flow_decoder": ("text-to-audio", _AUTO_MODEL),
    "hift": ("text-to-audio", _AUTO_MODEL),
    "us_tokenizer": ("feature-extraction", _AUTO_MODEL),
    "us_tokenizer_for_understanding": ("feature-extraction", _AUTO_MODEL),
    "kmeans_tokenizer": ("feature-extraction", _AUTO_MODEL),
}


def create_model_card(
    model_id: str,
    *,
    config: Any = None,
    license: str = "apache-2.0",
    base_models: str | Sequence[str] | None = None,
    pipeline_tag: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Iterable[str] = (),
    datasets: str | Sequence[str] | None = None,
    results: Sequence[EvalResult] | None = None,
    description: str = "",
    limitations: str = "",
    training: str = "",
) -> ModelCard:
    """A model card from the template of this package.

    Args:
        model_id: the repository, such as `"user/name"`; results need it.
        config (`PreTrainedConfig` or `dict`, *optional*): of the model; gives the default `pipeline_tag`, a tag and the
            usage example.
        license: identifier of the licence on the Hub.
        base_models: repositories of the models that this one was made from.
        pipeline_tag: task on the Hub; from the model type if not given.
        language: language codes.
        tags: besides `dualspeech` and the model type.
        datasets: repositories of the training data.
        results: measured numbers ([`huggingface_hub.EvalResult`]), shown as a table and kept as metadata.
        description, limitations, training: paragraphs of Markdown.

    Returns:
        The card; `card.save(path)` writes it.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    default_tag, usage = _USAGE.get(model_type, (None, _AUTO_MODEL))
    data = ModelCardData(
        license=license,
        base_model=_plain(base_models),
        pipeline_tag=pipeline_tag or default_tag,
        library_name="transformers",
        language=_plain(language),
        tags=sorted({"dualspeech", *([model_type] if model_type else []), *tags}),
        datasets=_plain(datasets),
        eval_results=list(results) if results else None,
        model_name=model_id.split("/")[-1] if results else None,
    )
    template = resources.files(f"{_PACKAGE}.model_cards") / "template.md"
    with resources.as_file(template) as path:
        return ModelCard.from_template(
            data,
            template_path=str(path),
            model_id=model_id,
            base_models=[base_models] if isinstance(base_models, str) else list(base_models or ()),
            usage=usage.format(model_id=model_id),
            auto_classes=", ".join(sorted(set(re.findall(r"Auto\w+", usage)))),
            results=list(results or ()),
            description=description,
            limitations=limitations,
            training=training,
            license=license,
        )


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    processor: Any = None,
    card: ModelCard | None = None,
    bundle_code: bool = True,
    private: bool | None = None,
    commit_message: str = "Upload with dualspeech",
    token: str | bool | None = None,
) -> CommitInfo:
    """Publish a checkpoint in one commit: weights, configuration, processor, its code, and a model card.

    Args:
        model (`PreTrainedModel` or path): a model, or a folder written by `save_pretrained`, which stays as it is.
        repo_id: the repository, created if it does not exist.
        processor (`ProcessorMixin`, *optional*): saved beside the model, its audio tokenizer included. A folder holds
            its own.
        card (`ModelCard`, *optional*): by default one made by [`create_model_card`] from the configuration alone, unless
            the folder has a README.md.
        bundle_code: whether the code is added with [`bundle_remote_code`].
        private: visibility of a new repository.
        commit_message: summary of the commit.
        token: access token; by default the one that was logged in with.

    Returns:
        The commit.

    Raises:
        ValueError: a folder and a processor, or a folder that [`bundle_remote_code`] does not know.
    """
    is_folder = isinstance(model, str | os.PathLike)
    if is_folder and processor is not None:
        raise ValueError("`processor` goes with a model; the folder given as `model` must hold its own")
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary) / "checkpoint"
        if is_folder:
            shutil.copytree(model, staging, copy_function=link_or_copy)
        else:
            model.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        if bundle_code:
            bundle_remote_code(staging)
        if card is None and not (staging / "README.md").exists():
            card = create_model_card(repo_id, config=read_json(staging / "config.json"))
        if card is not None:
            replace_text(staging / "README.md", str(card))
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(repo_id=repo_id, folder_path=staging, commit_message=commit_message)


def link_or_copy(source: str, target: str) -> None:
    """Give a file a second name instead of copying it, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _plain(value: str | Sequence[str] | None) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else list(value)


__all__ = ["bundle_remote_code", "create_model_card", "link_or_copy", "push_to_hub"]
