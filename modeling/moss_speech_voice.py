"""Voices of the MOSS-Speech codec: what its decoder is told about a speaker, as one object that can be kept in a file."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.configuration_moss_speech_codec import MossSpeechCodecConfig
from .audio_parts import check_finite

VOICE_FORMAT = "moss_speech_voice"  # entry `format` of the metadata of a file
TENSORS = ("prompt_codes", "prompt_mel", "speaker_embeds")
_COMMON_FIELDS = frozenset(field.name for field in fields(PreTrainedConfig))


@dataclass(frozen=True)
class CodecIdentity:
    """What two codecs must have in common for one to use the voices of the other.

    Args:
        codebook_size (`int`): number of codes.
        frames_per_code (`int`): mel frames per code.
        frame_rate (`float`): codes per second.
        num_mel_bins (`int`): bins of the prompt mel.
        speaker_embedding_size (`int`): numbers of a speaker vector.
        fingerprint (`str`): of the configurations of encoder, speaker encoder and prompt mel. Flow and vocoder count
            through their sizes only: a voice fits all released variants of the flow.
    """

    codebook_size: int
    frames_per_code: int
    frame_rate: float
    num_mel_bins: int
    speaker_embedding_size: int
    fingerprint: str

    @classmethod
    def of(cls, config: MossSpeechCodecConfig) -> "CodecIdentity":
        """The identity of the codec with this configuration."""
        making = {
            "encoder": _own_settings(config.encoder_config),
            "speaker": _own_settings(config.speaker_config),
            "mel": [config.sampling_rate, config.prompt_n_fft, config.prompt_max_frequency],
        }
        text = json.dumps(making, sort_keys=True)
        return cls(
            codebook_size=config.codebook_size,
            frames_per_code=config.frames_per_code,
            frame_rate=float(config.frame_rate),
            num_mel_bins=config.num_mel_bins,
            speaker_embedding_size=config.speaker_embedding_size,
            fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16],
        )


def _own_settings(config: PreTrainedConfig | None) -> dict | None:
    """The fields of one model that differ from its defaults, so that a field added later changes no fingerprint."""
    if config is None:
        return None
    default = type(config)()
    settings = {
        field.name: _plain(getattr(config, field.name))
        for field in fields(config)
        if field.name not in _COMMON_FIELDS
        and _plain(getattr(config, field.name)) != _plain(getattr(default, field.name))
    }
    return {"model_type": config.model_type, **settings}


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # 1 and 1.0 are one setting, and JSON writes them differently
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True, eq=False)
class MossSpeechVoice:
    """A voice of [`MossSpeechCodecModel`], made by its `make_voice` from a recording of the speaker.

    Args:
        prompt_codes (`torch.LongTensor`): `[P]`, the codes of the recording; P may be 0.
        prompt_mel (`torch.Tensor`): `[num_mel_bins, frames_per_code * P]`, its mel spectrogram.
        speaker_embeds (`torch.Tensor`): `[speaker_embedding_size]`; zeros stand for no speaker.
        identity (`CodecIdentity`): which codecs can use it.

    Raises:
        ValueError: shapes or types that do not go together, codes outside the codebook, NaN or infinite numbers.

    Example:

    ```python
    >>> voice = codec.make_voice(waveform, sampling_rate=44100)
    >>> voice.save("anna.safetensors")
    >>> voice = MossSpeechVoice.load("anna.safetensors").trim(multiple_of=5)
    >>> audio = codec.decode(codes, voice=voice)
    ```
    """

    prompt_codes: Tensor
    prompt_mel: Tensor
    speaker_embeds: Tensor
    identity: CodecIdentity

    def __post_init__(self):
        identity, codes = self.identity, self.prompt_codes
        if codes.dim() != 1 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"`prompt_codes` must be integers [P], got {codes.dtype} {tuple(codes.shape)}")
        shapes = {
            "prompt_mel": (identity.num_mel_bins, identity.frames_per_code * len(codes)),
            "speaker_embeds": (identity.speaker_embedding_size,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not value.is_floating_point():
                raise ValueError(
                    f"`{name}` must be floating point {list(shape)} beside {len(codes)} prompt codes, "
                    f"got {value.dtype} {list(value.shape)}"
                )
            check_finite(name, value[None])
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < identity.codebook_size:
            raise ValueError(
                f"`prompt_codes` must be from 0 to {identity.codebook_size - 1}, got {int(codes.min())} to "
                f"{int(codes.max())}"
            )
        object.__setattr__(self, "prompt_codes", codes.long())

    @classmethod
    def empty(cls, identity: CodecIdentity) -> "MossSpeechVoice":
        """No voice: an empty prompt and a zero speaker vector."""
        return cls(
            torch.zeros(0, dtype=torch.long),
            torch.zeros(identity.num_mel_bins, 0),
            torch.zeros(identity.speaker_embedding_size),
            identity,
        )

    @property
    def num_codes(self) -> int:
        """Codes of the prompt (P)."""
        return len(self.prompt_codes)

    @property
    def seconds(self) -> float:
        """Duration of the prompt."""
        return self.num_codes / self.identity.frame_rate

    def trim(self, multiple_of: int = 1, max_codes: int | None = None) -> "MossSpeechVoice":
        """A copy whose prompt is shorter, cut at its beginning: what is nearest to the reply stays.

        With `multiple_of` = the codes per chunk of a streaming decoder, the first chunk needs no more codes than the
        later ones. Every code of the prompt costs memory and time in every chunk, hence `max_codes`; 40 to 60 codes
        (3 to 5 s) keep a voice. The speaker vector stays that of the whole recording.

        Raises:
            ValueError: `multiple_of` below 1 or `max_codes` below 0.
        """
        if multiple_of < 1:
            raise ValueError(f"`multiple_of` must be at least 1, got {multiple_of}")
        if max_codes is not None and max_codes < 0:
            raise ValueError(f"`max_codes` must be at least 0, got {max_codes}")
        kept = self.num_codes if max_codes is None else min(self.num_codes, max_codes)
        kept -= kept % multiple_of
        cut = self.num_codes - kept
        return replace(
            self,
            prompt_codes=self.prompt_codes[cut:].clone(),
            prompt_mel=self.prompt_mel[:, cut * self.identity.frames_per_code :].clone(),
        )

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "MossSpeechVoice":
        """A copy on `device`, with mel and speaker vector in `dtype`."""
        return replace(
            self,
            prompt_codes=self.prompt_codes.to(device),
            prompt_mel=self.prompt_mel.to(device, dtype),
            speaker_embeds=self.speaker_embeds.to(device, dtype),
        )

    def check_identity(self, identity: CodecIdentity, name: str = "voice") -> None:
        """Raise a `ValueError` that says what differs unless a codec with this identity can use the voice."""
        ours, theirs = asdict(self.identity), asdict(identity)
        different = [f"{key} {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key]]
        if different:
            raise ValueError(
                f"`{name}` is a voice of another codec: {', '.join(different)}; make it with `make_voice` of this codec"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write the voice as safetensors; the identity of the codec stands in the metadata.

        Raises:
            ValueError: the name does not end in `.safetensors`.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"`path` must end in .safetensors, got {str(path)!r}")
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        save_file(tensors, path, metadata={"format": VOICE_FORMAT, "identity": json.dumps(asdict(self.identity))})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MossSpeechVoice":
        """Read a voice that `save` wrote, onto the CPU.

        Raises:
            ValueError: the file does not exist, is no safetensors file, or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"`path`: the file {str(path)!r} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                if metadata.get("format") != VOICE_FORMAT or names != set(TENSORS):
                    raise ValueError(
                        f"`path`: {str(path)!r} is no voice; it holds {sorted(names)[:10]} and the format "
                        f"{metadata.get('format')!r}"
                    )
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            identity = CodecIdentity(**json.loads(metadata["identity"]))
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"`path`: {str(path)!r} is damaged or no voice: {error}") from error
        return cls(**tensors, identity=identity)


def voices_of_rows(
    voice: "MossSpeechVoice | Sequence[MossSpeechVoice | None] | None", batch: int, identity: CodecIdentity
) -> list[MossSpeechVoice]:
    """One voice per row, [`MossSpeechVoice.empty`] where there is none.

    Args:
        voice: one for all rows, a list with one (or `None`) per row, or `None`.
        batch: number of rows.
        identity: of the codec that will use them.

    Raises:
        ValueError: something else than voices, another number of them, or a voice of another codec.
    """
    one = voice is None or isinstance(voice, MossSpeechVoice)
    rows = [voice] * batch if one else list(voice)
    if len(rows) != batch:
        raise ValueError(f"`voice` must be one voice or one per row: {batch} rows, got {len(rows)} voices")
    result = []
    for row, entry in enumerate(rows):
        if entry is None:
            entry = MossSpeechVoice.empty(identity)
        if not isinstance(entry, MossSpeechVoice):
            raise ValueError(f"`voice` must hold MossSpeechVoice objects or None, got {type(entry).__name__}")
        entry.check_identity(identity, "voice" if one else f"voice[{row}]")
        result.append(entry)
    return result


__all__ = ["CodecIdentity", "MossSpeechVoice", "voices_of_rows"]
