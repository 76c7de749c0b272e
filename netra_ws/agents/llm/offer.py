"""What a model is offered in one run: tools, as its server wants them told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import orjson

from netra_ws.identity import Identity

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
        return cls._saying(Toolbox(tools), lambda tool: True)

    def to(self, identity: Identity) -> Offer:
        """Return what of this is told to a model that works for *identity*; calls of the rest are denied."""
        if all(tool.permission is None for tool in self.toolbox):
            return self
        return self._saying(self.toolbox, lambda tool: tool.permission is None or identity.may(tool.permission))

    @classmethod
    def _saying(cls, toolbox: Toolbox, says: Callable[[Tool], bool]) -> Offer:
        names = {tool.name for tool in toolbox if says(tool)}
        functions = [each for each in toolbox.functions() if each["function"]["name"] in names]
        return cls(toolbox, functions, tokens_in(orjson.dumps(functions).decode()) if functions else 0)
