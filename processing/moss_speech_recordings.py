"""Recordings that chat messages point to: http(s) addresses and data URIs."""

import base64
import binascii
from typing import Any

from huggingface_hub.utils import httpx

SECONDS = 30.0  # to wait for a server


def fetch(source: Any) -> Any:
    """The content of an http(s) address or a base64 `data:` URI as `bytes`; anything else as it is.

    Raises:
        ValueError: the address cannot be read.
    """
    if not isinstance(source, str):
        return source
    if source.startswith("data:"):
        head, comma, body = source.partition(",")
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError("it is not base64")
            return base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"`audio`: {head[:60]!r} is a data URI that cannot be read ({error})") from error
    if source.startswith(("http://", "https://")):
        try:
            response = httpx.get(source, follow_redirects=True, timeout=SECONDS)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise ValueError(f"`audio`: {source!r} cannot be read ({error or type(error).__name__})") from error
        return response.content
    return source


__all__ = ["fetch"]
