"""Chat models behind one small interface: a model of transformers, or any server that speaks the OpenAI protocol."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoTokenizer

from .model_step import load_model, loaded

# Answers of a server to a request that it does not take; every other error is one of the server.
BAD_REQUEST = (400, 413, 422)
FIRST_WAIT_SECONDS = 1.0

Message = Mapping[str, str]


class ChatBackend(ABC):
    """A chat model. A dataclass of JSON values, as a step is; `setup` loads what cannot be pickled."""

    # Fields that do not change what is answered.
    not_settings: tuple[str, ...] = ("device",)
    # Replies that may be asked for at the same time.
    concurrency: int = 1

    def setup(self) -> None:  # noqa: B027  (optional)
        """Load what cannot be pickled. Called once in each process."""

    @abstractmethod
    def reply(self, messages: Sequence[Message]) -> str:
        """
        The answer to a chat of `{"role": "system" | "user" | "assistant", "content": text}`.

        Raises:
            ValueError: a chat that the model does not take, or an answer that did not end.
            RuntimeError: the model cannot be reached; no row is to blame.
        """

    def settings(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        kept = {name: value for name, value in values.items() if name not in self.not_settings}
        return {"backend": type(self).__name__, **kept}

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass
class TransformersChat(ChatBackend):
    """
    Any `AutoModelForCausalLM` whose tokenizer has a chat template.

    Args:
        checkpoint (`str`): folder or Hub id.
        max_new_tokens (`int`, *optional*, defaults to 2048): longer answers are errors.
        template (`dict`, *optional*): variables of the chat template, such as `{"enable_thinking": False}` of Qwen3.
        generation (`dict`, *optional*): arguments of `generate`; greedy by default.
        device, dtype: see [`ModelStep`].
    """

    checkpoint: str
    max_new_tokens: int = 2048
    template: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    dtype: str = "auto"

    _model = None

    def setup(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        self._model = load_model(AutoModelForCausalLM, self.checkpoint, self.device, self.dtype)

    @torch.no_grad()
    def reply(self, messages: Sequence[Message]) -> str:
        model = loaded(self._model, self)
        inputs = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **self.template,
        ).to(model.device)
        arguments = {"do_sample": False, "max_new_tokens": self.max_new_tokens, **self.generation}
        ids = model.generate(**inputs, **arguments)[0, inputs["input_ids"].shape[1] :]
        if len(ids) >= self.max_new_tokens:
            raise ValueError(f"the answer did not end within `max_new_tokens` {self.max_new_tokens}")
        return self._tokenizer.decode(ids, skip_special_tokens=True)


@dataclass
class EndpointChat(ChatBackend):
    """
    Any server with `/chat/completions` of the OpenAI protocol: vLLM, SGLang, TGI, or a paid service.

    Args:
        base_url (`str`): address in front of `/chat/completions`, such as `http://localhost:8000/v1`.
        model (`str`): name of the model at that address.
        api_key_variable (`str`, *optional*): the environment variable with the key. The key itself is kept nowhere.
        max_tokens (`int`, *optional*, defaults to 2048): longer answers are errors.
        options (`dict`, *optional*): further arguments of `InferenceClient.chat_completion`, such as `temperature` or
            `response_format`.
        concurrency (`int`, *optional*, defaults to 8): requests at the same time.
        timeout_seconds (`float`, *optional*, defaults to 120.0): of one request.
        max_attempts (`int`, *optional*, defaults to 5): of a request that the server does not answer, with growing
            pauses. After the last one the run stops; it can be resumed.
    """

    base_url: str
    model: str
    api_key_variable: str | None = None
    max_tokens: int = 2048
    options: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout_seconds: float = 120.0
    max_attempts: int = 5

    not_settings = ("api_key_variable", "base_url", "concurrency", "max_attempts", "timeout_seconds")

    _client = None

    def setup(self) -> None:
        # Without any key the client would send the user's token of the Hub, which is not for this server.
        key = "EMPTY"
        if self.api_key_variable is not None:
            key = os.environ.get(self.api_key_variable, "")
            if not key:
                raise ValueError(f"`api_key_variable`: the environment variable {self.api_key_variable!r} is not set")
        self._client = InferenceClient(base_url=self.base_url, token=key, timeout=self.timeout_seconds)

    def reply(self, messages: Sequence[Message]) -> str:
        client = loaded(self._client, self)
        chat = [dict(message) for message in messages]
        for attempt in range(1, self.max_attempts + 1):
            try:
                output = client.chat_completion(chat, model=self.model, max_tokens=self.max_tokens, **self.options)
                break
            except HfHubHTTPError.__bases__ as error:  # of its HTTP library, and OSError
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status in BAD_REQUEST:
                    raise ValueError(f"the server refuses the request with status {status}: {error}") from error
                is_final = status is not None and status < 500 and status not in (408, 429)
                if is_final or isinstance(error, OfflineModeIsEnabled) or attempt == self.max_attempts:
                    raise RuntimeError(f"no answer from {self.base_url!r} at attempt {attempt}: {error}") from error
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        choice = output.choices[0]
        if choice.finish_reason == "length":
            raise ValueError(f"the answer did not end within `max_tokens` {self.max_tokens}")
        return choice.message.content or ""


__all__ = ["ChatBackend", "EndpointChat", "TransformersChat"]
