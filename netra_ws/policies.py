"""From settings to the rules that the rooms hold: what was set is read here and handed down as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from netra_ws.access import (
    LOOPBACK,
    AddressTable,
    Admission,
    OriginPolicy,
    Proxies,
    PublicKeys,
    Revocations,
    Strikes,
    Verifier,
)
from netra_ws.agents.agent import Agent, collect_agents
from netra_ws.agents.asyncio_thread import AsyncioThread
from netra_ws.agents.builtin.assistant import make_assistant
from netra_ws.agents.builtin.echo import echo
from netra_ws.agents.request import RunPolicy
from netra_ws.contexts.policy import ContextPolicy
from netra_ws.errors import ConfigError
from netra_ws.settings import Settings, development_secret, has_model
from netra_ws.version import __version__
from netra_ws.wire.certificates import Certificates
from netra_ws.wire.paths import SOCKET_PATHS
from netra_ws.wire.pump import PROTOCOL

if TYPE_CHECKING:
    from netra_ws.agents.llm.endpoint import ModelEndpoint

#: Worker threads for blocking code of all runs.
RUN_THREADS = 40


def context_policy(settings: Settings, given: Mapping[str, Agent]) -> ContextPolicy:
    """Return what users may do; *given* are the program's own agents by name.

    Raises:
        ConfigError: An agent cannot be had, or there is none of the default's name.
    """
    prices = {model: attrs.asdict(price, filter=_is_set) for model, price in settings.prices.items()}
    builtin: dict[str, Agent] = {"assistant": make_assistant(prices or None), "echo": echo}
    model = _model_endpoint(settings, prices)
    if (
        settings.llm.base_url is not None
    ):  # also where it is wrong: that is said once, and not that the agent is missing
        from netra_ws.agents.builtin.model import make_llm

        builtin["llm"] = make_llm(prices or None)
    agents = collect_agents(builtin, settings.agents.modules, given)
    if settings.agents.default not in agents:
        raise ConfigError(f"agents.default: there is no agent {settings.agents.default!r}")
    limits, timing = settings.limits, settings.timing
    return ContextPolicy(
        agents=agents,
        default_agent=settings.agents.default,
        run=RunPolicy(
            finalise_s=timing.finalise_s,
            max_response_bytes=limits.max_response_bytes,
            max_event_bytes=limits.max_event_bytes,
            max_events=limits.max_events_per_run,
            asyncio=AsyncioThread(),
            threads=trio.CapacityLimiter(RUN_THREADS),
            model=model,
        ),
        on_disconnect=_on_disconnect(settings),
        allow_continue=settings.agents.allow_continue,
        resume_window_s=timing.resume_window_s,
        run_timeout_s=timing.run_timeout_s,
        idle_timeout_s=timing.idle_timeout_s,
        heartbeat_interval_s=timing.heartbeat_interval_s,
        pong_timeout_s=timing.pong_timeout_s,
        expiry_grace_s=settings.auth.expiry_grace_s,
        max_message_bytes=limits.max_message_bytes,
        messages_per_minute=limits.messages_per_minute,
        pings_per_minute=limits.pings_per_minute_per_connection,
        max_connections=limits.max_connections,
        max_connections_per_user=limits.max_connections_per_user,
        max_runs_per_user=limits.max_runs_per_user,
        max_threads_per_user=limits.max_threads_per_user,
        max_queued_per_thread=limits.max_queued_per_thread,
        max_jobs_per_connection=limits.max_jobs_per_connection,
    )


def _model_endpoint(settings: Settings, prices: Mapping[str, Mapping[str, float]]) -> ModelEndpoint | None:
    llm = settings.llm
    if not has_model(settings):
        return None
    assert llm.base_url is not None
    assert llm.model is not None
    # Imported late: httpx takes its time, and a server without a model has no use for it.
    from netra_ws.agents.llm.endpoint import ModelEndpoint

    return ModelEndpoint(llm.base_url, llm.model, llm.api_key, prices=prices, proxy=llm.proxy)


def _is_set(attribute: object, value: object) -> bool:
    return value is not None


def _on_disconnect(settings: Settings) -> Any:
    return settings.agents.on_disconnect


def secret_of(settings: Settings) -> str | None:
    """Return the secret that signs tokens: the given one, or in development the shared one of this user.

    Raises:
        ConfigError: It cannot be had.
    """
    if settings.auth.secret is None and settings.environment == "development":
        return development_secret()
    return settings.auth.secret


def make_admission(
    settings: Settings, revocations: Revocations, public: PublicKeys | None = None, *, tokens: bool = True
) -> Admission:
    """Return the lock of the door.

    Args:
        public: The keys of identity services, if there are any.
        tokens: Whether tokens say who somebody is; where the program has a rule of its own, no secret is needed.

    Raises:
        ConfigError: There is no key at all.
    """
    auth, origins, limits = settings.auth, settings.origins, settings.limits
    return Admission(
        Verifier(secret_of(settings), auth.issuer, auth.audience, auth.leeway_s, public, auth.algorithms)
        if tokens
        else None,
        OriginPolicy(origins.allowed, bool(origins.required), settings.environment),
        AddressTable(
            limits.max_tracked_addresses,
            limits.connects_per_minute_per_address,
            limits.failed_connects_per_minute_per_address,
        ),
        auth.query_token,
        revocations,
        Strikes(origins.strikes, origins.strike_window_s, origins.max_tracked),
    )


def make_certificates(settings: Settings, clock: Callable[[], float]) -> Certificates | None:
    """Return what the port speaks TLS with, or None; what deserves a second look is logged.

    Raises:
        ConfigError: The files cannot be used.
    """
    chain, key = settings.server.tls_cert, settings.server.tls_key
    if chain is None or key is None:
        return None
    certificates = Certificates(Path(chain), Path(key), clock)
    certificates.warn()
    return certificates


def make_proxies(settings: Settings) -> Proxies:
    """Return whose word about a client is believed: without names, that of a proxy on this machine."""
    if not settings.server.behind_proxy:
        return Proxies()
    return Proxies(settings.server.trusted_proxies or LOOPBACK)


def public_config(settings: Settings, policy: ContextPolicy, *, tokens: bool = True) -> dict[str, Any]:
    """Return what ``/ws/config`` tells everybody; without *tokens* the program has a rule of its own."""
    carriers = ["header", "subprotocol", "ticket"] if tokens else ["ticket"]
    if tokens and settings.auth.query_token:
        carriers.append("query")
    limits = settings.limits
    return {
        "endpoint": "/ws",
        "endpoints": sorted(SOCKET_PATHS),
        "protocols": [PROTOCOL],
        "version": __version__,
        "environment": settings.environment,
        "auth": {"methods": ["jwt" if tokens else "custom", "ticket"], "carriers": carriers},
        "limits": {
            "max_message_bytes": limits.max_message_bytes,
            "messages_per_minute": limits.messages_per_minute,
            "max_connections_per_user": limits.max_connections_per_user,
            "max_runs_per_user": limits.max_runs_per_user,
            "max_threads_per_user": limits.max_threads_per_user,
            "max_queued_per_thread": limits.max_queued_per_thread,
        },
        "heartbeat": {"interval_s": policy.heartbeat_interval_s, "pong_timeout_s": policy.pong_timeout_s},
        "resume_window_s": policy.resume_window_s,
        "agents": sorted(policy.agents),
        "features": {
            "resume": True,
            "threads": True,
            "search": True,
            "inputs": True,
            "sub_runs": True,
            "jobs": True,
            "console": settings.server.console,
            "llm": policy.run.model is not None,
        },
    }
