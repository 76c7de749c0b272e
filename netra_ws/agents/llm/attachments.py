"""What a model is shown of the files that come with a question: texts in the prompt, images as such, others by name."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from netra_ws.protocol.commands import Attachment

#: What an image counts in the budget, whatever its size; models count between 85 and some thousands.
IMAGE_TOKENS = 1000
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_TEXTS = ("application/json", "application/xml", "application/yaml", "application/toml", "application/x-ndjson")
_TEXTS_BY_SUFFIX = ("+json", "+xml", "+yaml")

Content = str | list[dict[str, Any]]


def content_of(text: str, attachments: Sequence[Attachment], clip: Callable[[str], str]) -> Content:
    """Return the content of a user's message: a text, or a list of parts where there are images.

    Images that are elsewhere are given on by their ``https`` address; the endpoint fetches them, not we. An operator
    whose endpoint reaches more than its users may has to forbid that there.
    """
    texts, images = [text], []
    for attachment in attachments:
        kind = attachment.media_type.partition(";")[0].strip().lower()
        url = _image_url(attachment, kind) if kind in IMAGES else None
        if url is not None:
            images.append({"type": "image_url", "image_url": {"url": url}})
        elif (inside := _text_of(attachment, kind)) is not None:
            texts.append(f"{named(attachment)}\n{clip(inside)}")
        else:
            texts.append(named(attachment))
    told = "\n\n".join(texts)
    return [{"type": "text", "text": told}, *images] if images else told


def named(attachment: Attachment) -> str:
    """Return a line that says that there is a file, with its name and type."""
    name, kind = (" ".join(text.split())[:200] for text in (attachment.name, attachment.media_type))
    line = f"[Attachment {name} ({kind})"
    if attachment.url is not None and not attachment.url.startswith("data:"):
        line += f" at {attachment.url[:500]}"
    return f"{line}]".encode(errors="replace").decode()


def _image_url(attachment: Attachment, kind: str) -> str | None:
    if attachment.data is not None:
        return f"data:{kind};base64,{attachment.data}" if _decoded(attachment.data) is not None else None
    url = attachment.url or ""
    allowed = url.startswith(("https://", *(f"data:{image};base64," for image in IMAGES)))
    return url if allowed and url.isascii() and url.isprintable() else None


def _text_of(attachment: Attachment, kind: str) -> str | None:
    if attachment.data is None or not (kind.startswith("text/") or kind in _TEXTS or kind.endswith(_TEXTS_BY_SUFFIX)):
        return None
    content = _decoded(attachment.data)
    return None if content is None else content.decode("utf-8-sig", errors="replace")


def _decoded(data: str) -> bytes | None:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None
