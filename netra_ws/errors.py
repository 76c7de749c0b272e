"""The whole exception tree of ``netra_ws`` at one glance.

::

    NetraError
    ├── ClientError          a client broke a rule; it gets an ``error`` frame and stays connected
    ├── Refused              a connection attempt is turned down by an HTTP answer, before the 101
    ├── ConfigError          settings that cannot be served; one clear line, then exit status 1
    ├── AgentError           an agent speaks to its user: code and text are shown
    │   ├── EventTooLarge    one event is above ``limits.max_event_bytes``
    │   ├── QuotaExceeded    one run said more than ``limits.max_events_per_run`` events
    │   ├── InvalidParameters  a tool was called with parameters that it does not take
    │   ├── ToolDenied       a tool was not allowed; told with status ``denied``
    │   ├── InputDeclined    the user does not answer an ``ask``, or not in time
    │   ├── DelegateFailed   a sub-run did not end with success
    │   └── ModelError       a model's endpoint is away, refuses, or answers nonsense
    ├── RunFailed            a message was taken, and its run did not end with success
    ├── RunClosed            an agent goes on after its run has ended or was sealed
    ├── WrongThread          a run was used outside the server's Trio thread
    ├── InvalidArgument      a program called one of our functions with what it does not take
    │   ├── InvalidContextError    a context of the older surface names no user, thread or run
    │   └── ContextIsolationError  something of one user was to reach another
    ├── LimitReached         a program asks for one more than there may be
    ├── ManagerClosed        a manager of the older surface is used before or after its life
    ├── ServerError          ours; logged, the client is told ``INTERNAL``
    │   ├── StoreError       the store failed or went away
    │   ├── StoreLeased      another process has the store
    │   ├── Trimmed          a position is no longer in the memory ring
    │   └── Lost             a position is no longer in the store either
    └── SessionError         seen by users of ``netra_ws.client``
        ├── Rejected         the server said no for good: do not reconnect
        ├── ConnectionLost   no connection could be made in the allowed time
        └── CommandFailed    the server answered a command with an error
            ├── AlreadyAnswered  an input has its answer: from another connection, or by its expiry
            ├── UnknownInput     no such input waits for this user
            └── UnfitAnswer      the value is not what was asked for; the input still waits
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

#: Wrong fields that one error names.
MAX_FIELDS = 20


class NetraError(Exception):
    """Root of everything that this package raises on purpose."""


class ClientError(NetraError):
    """A client sent something that cannot be done; it is told, and its connection goes on.

    Attributes:
        code: One of the codes of PROTOCOL §4, such as ``NOT_FOUND``.
        text: What the client is told; never anything internal.
        details: JSON object for programs, for example the bad fields by path.
        retryable: Whether the same command may succeed later.
        retry_after_s: Seconds to wait first, where that is known.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        details: Mapping[str, Any] | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.details = dict(details) if details else None
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Refused(NetraError):
    """A connection attempt ends with an HTTP answer instead of a 101.

    Attributes:
        status: HTTP status, 400 to 599.
        code: A stable word for programs, such as ``TOKEN_EXPIRED``.
        text: One sentence for people; never anything internal, never a piece of a token.
        retry_after_s: Whole seconds for ``Retry-After``, where the refusal is temporary.
        headers: More headers of the answer, such as ``Sec-WebSocket-Version``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        *,
        retry_after_s: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(f"{status} {code}: {text}")
        self.status = status
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s
        self.headers = headers


class ConfigError(NetraError):
    """The settings cannot be served; the text is one line that names the setting."""


class AgentError(NetraError):
    """An agent's own error that its user may read.

    Any other exception of an agent is logged, and the user is told only that the agent failed.

    Attributes:
        code: A stable word for programs; ``AGENT_ERROR`` by default.
        text: What the user is told.
        retryable: Whether asking again may help.
    """

    # For subclasses that do not call this __init__.
    code: str = "AGENT_ERROR"
    text: str = "the agent failed"
    retryable: bool = False

    def __init__(self, text: str, *, code: str = "AGENT_ERROR", retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retryable = retryable


class EventTooLarge(AgentError):
    """One event, result or final response is above ``limits.max_event_bytes``."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what}: {size} bytes, more than the {limit} allowed", code="EVENT_TOO_LARGE")


class QuotaExceeded(AgentError):
    """A run said more than it may; it is ended with ``cancelled_by: "quota"``."""

    def __init__(self, text: str) -> None:
        super().__init__(text, code="QUOTA_EXCEEDED")


class InvalidParameters(AgentError):
    """A tool was called with parameters that it does not take; nothing of it was carried out.

    Attributes:
        fields: JSON path → what is wrong there, at most 20 of them.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = dict(itertools.islice(fields.items(), MAX_FIELDS))
        wrong = "; ".join(f"{path}: {problem}" for path, problem in self.fields.items())
        super().__init__(wrong[:1000] or "wrong parameters", code="INVALID_PARAMETERS")


class ToolDenied(AgentError):
    """A tool may not be used: by this user, or this time. A tool may raise it itself."""

    def __init__(self, text: str = "this is not allowed", *, code: str = "FORBIDDEN") -> None:
        super().__init__(text, code=code)


class InputDeclined(AgentError):
    """Nobody answers what an agent has asked.

    Attributes:
        status: ``cancelled`` when the user has declined, ``expired`` when the time for it is over.
    """

    status: str = "cancelled"

    def __init__(self, status: str) -> None:
        text = "the question was not answered in time" if status == "expired" else "the question was declined"
        super().__init__(text, code=f"INPUT_{status.upper()}")
        self.status = status


class DelegateFailed(AgentError):
    """A sub-run did not end with success; code and text are those of its error.

    Attributes:
        run_id: Which sub-run.
        status: Its final status: ``error``, ``cancelled`` or ``timeout``.
    """

    run_id: str = ""
    status: str = "error"

    def __init__(self, text: str, *, code: str, run_id: str, status: str, retryable: bool = False) -> None:
        super().__init__(text, code=code, retryable=retryable)
        self.run_id = run_id
        self.status = status


class ModelError(AgentError):
    """A model's endpoint did not do what it was asked for; never holds its key, nor a header that was sent.

    Attributes:
        code: ``LLM_UNAVAILABLE`` (no connection, no answer in time, overloaded), ``LLM_REFUSED`` (it says no),
            ``LLM_BROKEN`` (broken off, or nonsense), ``LLM_CONTEXT_TOO_LONG`` or ``LLM_STEPS`` (the model asks for
            tools without an end).
        again: Whether the same request may succeed within seconds.
        retry_after_s: Seconds that the endpoint asks to wait first, or None.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        retryable: bool = False,
        again: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text, code=code, retryable=retryable or again)
        self.again = again
        self.retry_after_s = retry_after_s


class RunClosed(NetraError):
    """The run has ended or was sealed: nothing can be said in its name any more."""


class RunFailed(NetraError):
    """A program's message was taken, and its run ended otherwise than with success; the user has heard its end.

    Attributes:
        run_id: Which run.
        status: Its final status: ``error``, ``cancelled`` or ``timeout``.
        cancelled_by: Who ended it, or None.
    """

    def __init__(self, run_id: str, status: str, cancelled_by: str | None = None) -> None:
        by = "" if cancelled_by is None else f" by {cancelled_by}"
        super().__init__(f"{run_id} ended with {status}{by}")
        self.run_id = run_id
        self.status = status
        self.cancelled_by = cancelled_by


class WrongThread(NetraError):
    """A run was used outside the server's Trio thread; go through ``trio.from_thread``."""


class InvalidArgument(NetraError, ValueError):
    """A program called one of our functions with what it does not take; nothing was stored or sent.

    Attributes:
        argument: The name of the argument.
    """

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(f"{argument}: {text}")
        self.argument = argument


class InvalidContextError(InvalidArgument):
    """A ``compat.UserExecutionContext`` was to be made of what does not name a user, a thread or a run."""


class ContextIsolationError(InvalidArgument):
    """Something of one user was to reach what belongs to another; nothing was stored or sent."""


class LimitReached(NetraError, RuntimeError):
    """A program asks for one more of something than there may be; nothing was made or changed.

    Attributes:
        what: What there would be too many of, such as ``managers of this user``.
        most: How many there may be.
    """

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"{what}: the maximum of {most} is reached; close or remove some first")
        self.what = what
        self.most = most


class ManagerClosed(NetraError, RuntimeError):
    """A manager of ``netra_ws.compat`` is used after its end, or for what it does only inside ``async with``."""


class ServerError(NetraError):
    """Our own failure: logged in full, told to clients only as ``INTERNAL`` or ``UNAVAILABLE``."""


class StoreError(ServerError):
    """The store could not do its work; what was handed to it may be tried again."""


class StoreLeased(ServerError):
    """Another process works on this store; a second one would number events twice."""


class Trimmed(ServerError):
    """A position is no longer in the memory ring. Not an error of the client: go on from the store."""


class Lost(ServerError):
    """The store has removed what comes behind a position: whoever reads there has to start anew."""


class SessionError(NetraError):
    """What users of ``netra_ws.client`` catch."""


class Rejected(SessionError):
    """The server said no for good; connecting again with the same input cannot help.

    Attributes:
        status: HTTP status of the refusal, or None when it came as a close code.
        code: A word such as ``TOKEN_EXPIRED``, or the close code as text.
    """

    def __init__(self, status: int | None, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.status = status
        self.code = code
        self.text = text


class ConnectionLost(SessionError):
    """No connection could be made, or made again, within the allowed time."""


class CommandFailed(SessionError):
    """The server answered a command with an ``error`` frame.

    Attributes:
        code: One of the codes of PROTOCOL §4.
        retryable: Whether the same command may succeed later.
        details: JSON object of the error frame, or None.
    """

    def __init__(
        self, code: str, text: str, *, retryable: bool = False, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.retryable = retryable
        self.details = dict(details) if details else None


class AlreadyAnswered(CommandFailed):
    """An input was answered, declined or had expired before this answer came; it counts no more."""


class UnknownInput(CommandFailed):
    """This user has no such input: the id is wrong, or the input is long over."""


class UnfitAnswer(CommandFailed):
    """The value is not what the input's choices or schema ask for; another one may be given."""

    @property
    def fields(self) -> Mapping[str, str]:
        """JSON path → what is wrong there; ``$.value`` is the whole value."""
        fields = (self.details or {}).get("fields")
        return {str(path): str(text) for path, text in fields.items()} if isinstance(fields, Mapping) else {}
