"""What the pages say once more in the older system's words, for programs that read those fields.

More keys beside our own, from the same numbers; nothing is counted here.
"""

from __future__ import annotations

from typing import Any

import trio

from netra_ws.wire.paths import SOCKET_PATHS

from .sources import Sources, rate_limited

#: Answers to what was no command at all.
_UNHANDLED = frozenset({"UNKNOWN_TYPE", "MISSING_TYPE"})


def health_words(sources: Sources) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what stands in ``metrics`` and what beside it; rates are shares from 0 to 1."""
    policy = sources.registry.policy
    metrics = {
        "websocket": {
            "active_connections": sources.registry.seats,
            "total_connections": sources.door.outcomes["accepted"],
            "messages_processed": sources.registry.commands.total(),
            "error_rate": sources.registry.recent.error_rate(trio.current_time()),
        },
        "authentication": {
            "success_rate": _authentication(sources)["success_rate"],
            "rate_limited_requests": sum(rate_limited(sources).values()),
        },
        "monitoring": _monitoring(sources),
    }
    config = {
        "max_connections_per_user": policy.max_connections_per_user,
        "heartbeat_interval": policy.heartbeat_interval_s,
    }
    return metrics, {"config": config}


def config_words(sources: Sources) -> dict[str, Any]:
    """Return ``websocket`` and ``server`` of the older configuration."""
    policy, ours = sources.registry.policy, sources.config
    return {
        "websocket": {
            "endpoint": ours["endpoint"],
            "version": ours["version"],
            "authentication": "jwt_required" if "jwt" in ours["auth"]["methods"] else "required",
            "supported_auth_methods": ours["auth"]["carriers"],
            "features": dict.fromkeys(
                ("heartbeat", "message_routing", "json_rpc_support", "rate_limiting", "error_recovery"), True
            ),
            "limits": {
                "max_connections_per_user": policy.max_connections_per_user,
                "max_message_rate_per_minute": policy.messages_per_minute,
                "max_message_size_bytes": policy.max_message_bytes,
                "heartbeat_interval_seconds": policy.heartbeat_interval_s,
            },
        },
        "server": {
            "active_connections": sources.registry.seats,
            "uptime_seconds": _uptime_s(sources),
            "server_time": sources.clock(),
        },
    }


def stats_words(sources: Sources) -> dict[str, Any]:
    """Return the older sections of the statistics: sums, and never a name."""
    config = config_words(sources)
    admission = sources.admission.statistics(sources.clock())
    return {
        "timestamp": sources.clock(),
        "websocket_manager": {
            "active_connections": sources.registry.seats,
            "total_connections": sources.door.outcomes["accepted"],
            "unique_users": sources.registry.statistics().users,
            "uptime_seconds": _uptime_s(sources),
        },
        "message_router": _routing(sources),
        "authentication": _authentication(sources),
        "security": {
            "total_violations": sum(admission.origins_refused.values()),
            "blocked_origin_count": admission.origins_blocked,
        },
        "connection_monitoring": _monitoring(sources),
        "system": {
            "config": config["websocket"]["limits"],
            "endpoint_info": {"endpoint": sources.config["endpoint"], "endpoints": sorted(SOCKET_PATHS)},
        },
    }


def _routing(sources: Sources) -> dict[str, Any]:
    types: dict[str, int] = {}
    unhandled = failed = 0
    for (command, code), count in sources.registry.commands.items():
        types[command] = types.get(command, 0) + count
        unhandled += count if code in _UNHANDLED else 0
        failed += count if code == "INTERNAL" else 0
    return {
        "messages_routed": sum(types.values()),
        "unhandled_messages": unhandled,
        "handler_errors": failed,
        "message_types": types,
    }


def _authentication(sources: Sources) -> dict[str, Any]:
    auth = sources.admission.statistics(sources.clock()).auth
    total, good = sum(auth.values()), auth["ok"]
    return {
        "total_attempts": total,
        "successful_auths": good,
        "failed_auths": total - good,
        "success_rate": good / total if total else 1.0,
    }


def _monitoring(sources: Sources) -> dict[str, Any]:
    """Return how many connections the heartbeat looks after; those that have ended go at the next beat."""
    watched = len(sources.heartbeat)
    return {"monitored_connections": watched, "healthy_connections": min(watched, sources.registry.seats)}


def _uptime_s(sources: Sources) -> float:
    return round(sources.clock() - sources.started_at, 3)
