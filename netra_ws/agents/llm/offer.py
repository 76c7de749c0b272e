"""What a model is offered in one run: tools, as its server wants them told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from ..toolbox import Toolbox
from ..tools import Tool
from .conversation import tokens_in


@attrs.frozen
class Offer:
    """Tools that a model may ask for.

    Attributes:
        functions: The tools in the words of chat completions.
        tokens: What telling them takes of the budget.
    """

    toolbox: Toolbox
    functions: Sequence[Mapping[str, Any]]
    tokens: int

    @classmethod
    def of(cls, tools: Iterable[Tool]) -> Offer:
        """Return the offer of these tools.

        Raises:
            ConfigError: Two have the same name.
        """
        toolbox = Toolbox(tools)
        functions = toolbox.functions()
        return cls(toolbox, functions, tokens_in(orjson.dumps(functions).decode()) if functions else 0)
