"""The tool ``clock``: what time it is somewhere, from the time zone database of the system.

A zone may be called by its IANA name (``Europe/Berlin``), by the last part of one (``Berlin``, ``new york``), by one
of a few large cities that have no zone of their own, or by its distance from UTC (``UTC+5:30``, ``+02:00``).
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
import zoneinfo
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

from netra_ws.errors import AgentError

MAX_ZONE_CHARS = 100

_UTC_NAMES = {"", "utc", "gmt", "z", "zulu", "universal time", "greenwich"}
_OFFSET = re.compile(r"(?:utc|gmt)? ?([+−-]) ?([0-9]{1,2})(?::?([0-5][0-9]))?", re.IGNORECASE)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# "West" is in Australia, Brazil and (as a city) nowhere: where two zones end alike, these regions are meant.
_REGIONS = ("Africa", "America", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific", "Antarctica", "Arctic")

_CITIES = {
    "bangalore": "Asia/Kolkata",
    "barcelona": "Europe/Madrid",
    "beijing": "Asia/Shanghai",
    "boston": "America/New_York",
    "cologne": "Europe/Berlin",
    "delhi": "Asia/Kolkata",
    "frankfurt": "Europe/Berlin",
    "geneva": "Europe/Zurich",
    "hamburg": "Europe/Berlin",
    "houston": "America/Chicago",
    "milan": "Europe/Rome",
    "mumbai": "Asia/Kolkata",
    "munich": "Europe/Berlin",
    "new delhi": "Asia/Kolkata",
    "nyc": "America/New_York",
    "osaka": "Asia/Tokyo",
    "rio de janeiro": "America/Sao_Paulo",
    "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles",
    "washington": "America/New_York",
}


def clock(zone: str = "UTC", *, now: datetime) -> dict[str, Any]:
    """Return the time *now* in *zone*.

    *now* must be aware.  The result::

        {"zone": "Europe/Berlin", "iso": "2025-09-05T14:03:00+02:00", "date": "2025-09-05", "time": "14:03:00",
         "weekday": "Friday", "utc_offset": "+02:00", "unix": 1757073780}

    Raises:
        AgentError: ``UNKNOWN_TIME_ZONE``, with a zone of a similar name where there is one; ``NO_TIME_ZONES`` when
            this system has no time zone database, so that only UTC and distances from it are known.
        ValueError: *now* is naive.
    """
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime")
    name, rules = _find(zone)
    local = now.astimezone(rules)
    iso = local.isoformat(timespec="seconds")
    return {
        "zone": name,
        "iso": iso,
        "date": local.date().isoformat(),
        "time": local.strftime("%H:%M:%S"),
        "weekday": _WEEKDAYS[local.weekday()],
        "utc_offset": iso[len("YYYY-MM-DDThh:mm:ss") :],
        "unix": int(now.timestamp()),
    }


def _find(zone: str) -> tuple[str, tzinfo]:
    asked = _key(zone[:MAX_ZONE_CHARS])
    if asked in _UTC_NAMES:
        return "UTC", UTC
    if offset := _OFFSET.fullmatch(asked):
        return _fixed(offset)
    names = _names()
    if not names:
        raise AgentError(
            "This server has no time zone database, so it only knows UTC and distances from it such as UTC+2.",
            code="NO_TIME_ZONES",
        )
    # "Paris, France"
    name = names.get(asked) or names.get(asked.partition(",")[0].strip())
    if name is None:
        alike = difflib.get_close_matches(asked, names, n=1, cutoff=0.75)
        hint = f" Did you mean {names[alike[0]]}?" if alike else " Use a name such as Europe/Berlin, or a large city."
        raise AgentError(f"I do not know the time zone {zone[:MAX_ZONE_CHARS]!r}.{hint}", code="UNKNOWN_TIME_ZONE")
    try:
        return name, zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        raise AgentError(f"The time zone {name} cannot be read on this server.", code="UNKNOWN_TIME_ZONE") from None


def _fixed(offset: re.Match[str]) -> tuple[str, tzinfo]:
    sign = "+" if offset[1] == "+" else "-"
    hours, minutes = int(offset[2]), int(offset[3] or 0)
    if hours > 14:
        raise AgentError("No time zone is more than 14 hours from UTC.", code="UNKNOWN_TIME_ZONE")
    distance = timedelta(hours=hours, minutes=minutes)
    return f"UTC{sign}{hours:02}:{minutes:02}", timezone(distance if sign == "+" else -distance)


def _key(name: str) -> str:
    """Return *name* as it is compared: no case, accents, ``_`` or ``-`` between letters."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    return " ".join(re.sub(r"(?<=[^\W\d])[_-](?=[^\W\d])", " ", plain.casefold()).split())


@functools.cache
def _names() -> Mapping[str, str]:
    # Walks the whole database on disk, about 20 ms; it does not change under a running server.
    return index(zoneinfo.available_timezones())


def index(zones: Collection[str]) -> Mapping[str, str]:
    """Return the zone for every name by which one may be asked for; empty if there are no zones."""
    names: dict[str, str] = {}
    for zone in sorted(zones, key=_rank):
        names.setdefault(_key(zone.rpartition("/")[2]), zone)
    for city, zone in _CITIES.items():
        if zone in zones:
            names.setdefault(city, zone)
    return names | {_key(zone): zone for zone in zones}


def _rank(zone: str) -> tuple[bool, int, str]:
    return (zone.partition("/")[0] not in _REGIONS, zone.count("/"), zone)
