"""JSON Schemas as agents hand them in, for tests and pictures of the console's forms."""

from __future__ import annotations

from typing import Any

DELIVERY: dict[str, Any] = {
    "type": "object",
    "title": "Delivery",
    "properties": {
        "recipient": {"type": "string", "minLength": 2, "description": "Who takes it at the door."},
        "boxes": {"type": "integer", "minimum": 1, "maximum": 40, "default": 1},
        "day": {"type": "string", "format": "date", "title": "Delivery day"},
        "express": {"type": "boolean", "default": False, "description": "Costs 12 € more."},
        "speed": {"enum": ["slow", "fast", "at once"]},
        "extras": {"type": "array", "items": {"enum": ["gift wrap", "insurance", "signature"]}, "uniqueItems": True},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^\\d{5}$"}},
            "required": ["street", "zip"],
        },
        "mail": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}], "default": None},
        "note": {"type": "string", "maxLength": 500},
        "rules": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "required": ["recipient", "boxes", "day", "speed", "address"],
}
