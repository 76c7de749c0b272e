"""Spans of OpenTelemetry, one per run and one per tool call, where ``netra_ws[otel]`` is installed.

A run's span belongs to the trace that its client names in ``context`` (``traceparent`` and ``tracestate``,
W3C Trace Context), a sub-run's and a tool's to what they are begun in. Names and attributes are those of
OpenTelemetry's conventions for generative AI. Texts, parameters and results are left out: they are the
user's. Where spans go is the program's business: it sets up a provider, or nothing is recorded.

Nothing of this may hurt a run: whatever a provider raises is logged, and that is all.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)

#: What the client's context may say of its trace.
CARRIED = ("traceparent", "tracestate")
INSTALLED = importlib.util.find_spec("opentelemetry") is not None


@attrs.define(eq=False)
class Span:
    """A span that is under way, or none where nothing is traced."""

    _span: Any = None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the one that spans begun in this task belong to."""
        if self._span is None:
            yield
            return
        from opentelemetry import context, trace

        token = context.attach(trace.set_span_in_context(self._span))
        try:
            yield
        finally:
            context.detach(token)

    def end(self, status: str, error_code: str | None = None, **attributes: Any) -> None:
        """End it with how it went; later calls do nothing."""
        span, self._span = self._span, None
        if span is None:
            return
        try:
            from opentelemetry.trace import StatusCode

            for name, value in attributes.items():
                if value is not None:
                    span.set_attribute(name.replace("__", "."), value)
            span.set_attribute("netra_ws.status", status)
            if error_code is not None:
                span.set_attribute("error.type", error_code)
            if status in ("error", "timeout", "lost"):
                span.set_status(StatusCode.ERROR, error_code or status)
            span.end()
        except Exception:  # somebody else's processor or exporter
            logger.exception("a span could not be ended")


def begin_run(run: Run) -> Span:
    """Begin the span of a run that has begun."""
    if not INSTALLED:
        return Span()
    carrier = {} if run.parent is not None else _carried(run.context)
    attributes = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": run.agent_name,
        "gen_ai.conversation.id": run.thread_id,
        "user.id": run.user_id,
        "netra_ws.run_id": run.run_id,
        "netra_ws.trigger": run.request.trigger,
    }
    return _begin(f"invoke_agent {run.agent_name}", attributes, carrier)


def begin_call(run: Run, name: str, tool_call_id: str) -> Span:
    """Begin the span of a tool call, inside of the span that this task is in."""
    if not INSTALLED:
        return Span()
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": tool_call_id,
        "netra_ws.run_id": run.run_id,
    }
    return _begin(f"execute_tool {name}", attributes, {})


def _carried(context: Mapping[str, Any]) -> dict[str, str]:
    """Return what a client's context says of its trace; anything but text says nothing."""
    return {name: value for name in CARRIED if isinstance(value := context.get(name), str)}


def _begin(name: str, attributes: Mapping[str, Any], carrier: Mapping[str, str]) -> Span:
    try:
        from opentelemetry import propagate, trace

        parent = propagate.extract(carrier) if carrier else None
        tracer = trace.get_tracer("netra_ws")
        return Span(tracer.start_span(name, context=parent, attributes=attributes))
    except Exception:  # somebody else's sampler or processor
        logger.exception("a span could not be begun")
        return Span()


def load() -> None:
    """Import what is needed later, so that no run has to wait for it."""
    if INSTALLED:
        from opentelemetry import propagate, trace

        trace.get_tracer("netra_ws")
        propagate.get_global_textmap()
