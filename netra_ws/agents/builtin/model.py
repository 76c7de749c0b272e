"""The agent ``llm`` as it comes with a server that has a model (``llm.base_url``): with the tools of the assistant."""

from __future__ import annotations

from ..llm.agent import LlmAgent
from .tools import Prices, make_tools

INSTRUCTIONS = (
    "You are a helpful assistant. Answer in the language of the user. Use the tools where they help: calculate rather "
    "than guess numbers, look at the clock for the time, and search the user's own messages for what was said before."
)


def make_llm(prices: Prices | None = None) -> LlmAgent:
    """Return the agent.

    Args:
        prices: As for ``make_assistant``, of the usage logs that users bring along.
    """
    return LlmAgent(tools=make_tools(prices), instructions=INSTRUCTIONS)
