"""``/ws/bounds``: every queue, map, cache and wait of the server in one table, with bound, policy and metric."""

from __future__ import annotations

from typing import Any

import attrs

from netra_ws.wire.head import Head, Reply, json_reply

from .containers import CONTAINERS, Container
from .sources import FRESH, Sources
from .waits import WAITS, Wait


@attrs.frozen
class Bounds:
    """The table; how full everything is only for operators."""

    sources: Sources

    async def page(self, head: Head, body: bytes) -> Reply:
        """Answer with JSON, or with ``?format=text`` as lines to read.

        Raises:
            Refused: As ``/ws/stats``.
        """
        sizes = await self.sources.shows_all(head)
        containers = [self._container(row, sizes) for row in CONTAINERS]
        waits = [self._wait(row) for row in WAITS]
        if head.query.get("format") == "text":
            return Reply(200, _text(containers, waits).encode(), "text/plain; charset=utf-8", FRESH)
        return json_reply(200, {"containers": containers, "waits": waits}, FRESH)

    def _container(self, row: Container, sizes: bool) -> dict[str, Any]:
        fields = {
            "what": row.what,
            "per": row.per,
            "bound": row.bound(self.sources),
            "unit": row.unit,
            "policy": row.policy,
            "metrics": row.shown,
            "where": list(row.where),
        }
        if sizes and row.size is not None:
            fields["size"] = row.size(self.sources)
        return fields

    def _wait(self, row: Wait) -> dict[str, Any]:
        within_s = None if row.within_s is None else row.within_s(self.sources)
        return {
            "what": row.what,
            "within_s": within_s,
            "ends": row.ends,
            "metrics": row.shown,
            "where": list(row.where),
        }


def _text(containers: list[dict[str, Any]], waits: list[dict[str, Any]]) -> str:
    lines = ["What holds things, and how much at most", ""]
    for row in containers:
        size = f"now {row['size']}, " if "size" in row else ""
        lines.append(f"{row['what']} (per {row['per']}): {size}at most {row['bound']:,} {row['unit']}")
        lines.append(f"    beyond it: {row['policy']}")
        lines += [f"    shown by: {row['metrics']}"] if row["metrics"] else []
    lines += ["", "What is waited for, and for how long", ""]
    for row in waits:
        bound = "as long as it takes" if row["within_s"] is None else f"at most {row['within_s']:g} s"
        lines.append(f"{row['what']}: {bound}")
        lines.append(f"    ended by: {row['ends']}")
        lines += [f"    shown by: {row['metrics']}"] if row["metrics"] else []
    return "\n".join([*lines, ""])
