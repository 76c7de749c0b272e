"""What a tool of an MCP server answered, as a result that an event can carry and a model can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

#: Characters of a text that tells a model what went wrong.
MAX_ERROR_TEXT = 4000


def read_results(answer: CallToolResult, max_bytes: int) -> Any:
    """Return a JSON value: structured content where there is some, else one text, else a list of contents.

    Images, sounds and files are named with their sizes, not carried. What is above *max_bytes* becomes a text
    that is cut and says so.
    """
    results = answer.structured_content
    if results is None:
        results = _contents(answer.content)
    try:
        encoded = orjson.dumps([results])
    except TypeError:  # a number of more than 64 bits
        results = json.dumps(results, ensure_ascii=False)
        encoded = orjson.dumps([results])
    if len(encoded) - 2 <= max_bytes:
        return results
    text = results if isinstance(results, str) else orjson.dumps(results).decode()
    return _cut(text, max_bytes)


def error_text(answer: CallToolResult) -> str:
    """Return what the tool said of its failure."""
    contents = _contents(answer.content)
    text = contents if isinstance(contents, str) else json.dumps(contents, ensure_ascii=False)
    return (text or "the tool failed and did not say why")[:MAX_ERROR_TEXT]


def _contents(blocks: Sequence[ContentBlock]) -> Any:
    if all(isinstance(block, TextContent) for block in blocks):
        return "\n".join(block.text for block in blocks if isinstance(block, TextContent))
    return [_content(block) for block in blocks]


def _content(block: ContentBlock) -> dict[str, Any]:
    match block:
        case TextContent():
            return {"type": "text", "text": block.text}
        case ImageContent() | AudioContent():
            return {"type": block.type, "mime_type": block.mime_type, "bytes": _size(block.data)}
        case ResourceLink():
            return {"type": "link", "uri": block.uri, "name": block.name, "mime_type": block.mime_type}
        case EmbeddedResource(resource=file):
            carried = {"text": file.text} if isinstance(file, TextResourceContents) else {"bytes": _size(file.blob)}
            return {"type": "file", "uri": file.uri, "mime_type": file.mime_type, **carried}


def _size(base64: str) -> int:
    """Return how many bytes a text of base64 stands for."""
    return len(base64.rstrip("=")) * 3 // 4


def _cut(text: str, max_bytes: int) -> str:
    note = f"… [cut: {len(text)} characters in all, more than fit into a result]"
    kept = text[:max_bytes]
    while kept and (over := len(orjson.dumps(kept + note)) - max_bytes) > 0:
        # A character takes up to six bytes in JSON: an estimate from above, then again.
        kept = kept[: max(0, len(kept) - max(1, over // 6))]
    return kept + note
