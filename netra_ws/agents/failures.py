"""What may come out of an agent: any exception at all, alone or in groups, and what its user is told of it.

Exceptions are objects of the agent's own classes: their text, their repr and their way to be split may
raise, too. Nothing here, and nothing that uses what is returned here, relies on them.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import traceback
from typing import Any

import trio

from netra_ws.errors import AgentError

#: Groups that are nested deeper are told as one flat group of at most so many: Trio and logging walk
#: them by recursion.
MAX_NESTED = 50
MAX_LEAVES = 100
#: What an agent's own error tells is cut to so many characters.
ERROR_CHARS = 4096


def leaves(exc: BaseException) -> list[BaseException]:
    """Return the exceptions in a group in their order, however deep it is nested; another one alone."""
    found: list[BaseException] = []
    waiting = [exc]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(reversed(each.exceptions))
        else:
            found.append(each)
    return found


def find_agent_error(exc: BaseException) -> AgentError | None:
    """Return the first error in *exc* that its user may read."""
    return next((each for each in leaves(exc) if isinstance(each, AgentError)), None)


def wording(error: AgentError) -> tuple[str, str, bool]:
    """Return code, text and retryable of *error* as an event can carry them, whatever the agent put there.

    It may have given another exception instead of a text, or the name of a file that is not UTF-8.
    """
    return _text(error, "code"), _text(error, "text"), _text(error, "retryable") == "True"


def _text(error: AgentError, name: str) -> str:
    try:
        text = str(getattr(error, name))
    except Exception:  # the agent's own code, called behind its crash wall
        text = str(getattr(AgentError, name))
    return text[:ERROR_CHARS].encode(errors="replace").decode()


def split(exc: BaseException, *, cancelled: bool) -> tuple[BaseException | None, BaseException | None]:
    """Part Ctrl-C, which must go on, from what is the agent's own; being *cancelled* is neither."""
    found = leaves(exc)
    ctrl_c = next((each for each in found if _is_ctrl_c(each)), None)
    own = [each for each in found if each is not ctrl_c and not (cancelled and isinstance(each, trio.Cancelled))]
    if not own:
        return ctrl_c, None
    return ctrl_c, exc if len(own) == len(found) or not isinstance(exc, BaseExceptionGroup) else exc.derive(own)


def _is_ctrl_c(exc: BaseException) -> bool:
    """Whether a signal has raised this, not the agent itself: then the signal's handler is in its traceback."""
    if not isinstance(exc, KeyboardInterrupt):
        return False
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        return True  # it leaves no frame, so nobody can tell
    code = getattr(handler, "__code__", None)
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(exc.__traceback__))


def flat(exc: BaseException) -> BaseException:
    """Return *exc*, or for a group that is too deep or of a class of its own one flat group of Python's."""
    level = [exc]
    for _ in range(MAX_NESTED):
        groups = [each for each in level if isinstance(each, BaseExceptionGroup)]
        if not groups:
            return exc
        if any(type(each) not in (BaseExceptionGroup, ExceptionGroup) for each in groups):
            break
        level = [inner for each in groups for inner in each.exceptions]
    return BaseExceptionGroup(f"flattened {type(exc).__name__}", leaves(exc)[:MAX_LEAVES])


def log_failure(logger: logging.Logger, level: int, exc: BaseException, text: str, *args: object) -> None:
    """Log *exc* with its traceback, or without it where it cannot be shown."""
    try:
        logger.log(level, text, *args, exc_info=exc)
    except Exception as trouble:  # formatting it runs code of the agent's own class
        log_safely(logger, level, f"{text}; its traceback cannot be shown: {type(trouble).__name__}", *args)


def log_safely(logger: logging.Logger, level: int, text: str, *args: object, **options: Any) -> None:
    """Log a line where an error may not come from: a program's own handler or filter may raise anything."""
    with contextlib.suppress(Exception):
        logger.log(level, text, *args, **options)
