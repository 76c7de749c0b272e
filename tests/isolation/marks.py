"""Who may hear what: each user's secret mark, and the watch over every frame that somebody receives.

Three rules. No mark of another user stands anywhere in the bytes. No id that the server made for one
user is told to another, unless that one has said it before. And an answer never shows that something
exists which its reader has neither made nor been told of.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

#: A mark holds letters that no hexadecimal id has, so nothing has one by chance.
MARK = re.compile(rb"zq\d\dqz")
#: Ids that the server makes; the epoch of a stream is looked for by its field.
MADE = re.compile(rb"\b(?:run|msg|thread|call|conn|input)_[0-9a-f]{16,}")
#: So many are told; one would do.
MOST_LEAKS = 100
#: What may be the beginning of an id, at the end of a piece of a frame.
TAIL = re.compile(rb"[A-Za-z0-9_.:-]+\Z")
#: Stands in variables of the tasks that bring clients to the server; nobody may ever hear it.
NOBODY = "zq99qz"
#: What refers to something that is there already: an answer that is no error shows that it exists.
REFERRING = frozenset(
    {"stop_agent", "cancel", "get_thread_history", "rename_thread", "delete_thread", "user_typing", "typing_stopped"}
)
MISSING = frozenset({"thread", "run", "input", "job"})


def mark_of(number: int) -> str:
    """Return the mark of a user; it is part of the user's id and of everything that they say."""
    return f"zq{number:02d}qz"


@attrs.frozen
class Leak:
    """Something that reached somebody whom it does not concern."""

    step: int
    user: str
    what: str
    data: bytes

    def __str__(self) -> str:
        return f"step {self.step}, {self.user}: {self.what}: {self.data[:600]!r}"


@attrs.define(eq=False)
class Said:
    """A command as it was sent, for judging its answer.

    Attributes:
        named: The thread and the run that it names.
        used: What it may conflict with: its own id, and the run id that it chooses.
        new: Whether the user had not heard of that run id.
    """

    type: str
    named: tuple[str, ...]
    used: tuple[str, ...]
    new: bool


@attrs.define(eq=False)
class Reader:
    """What one user may hear.

    Attributes:
        granted: Jobs that the user's tokens name.
        said: Everything that the user's clients ever sent that may look like another's: ids and marks.
        knows: Ids that the user has made or was told of.
        used: How often the user's clients have said each command id and run id that they chose.
    """

    user: str
    mark: str
    granted: frozenset[str] = frozenset()
    said: set[bytes] = attrs.field(factory=set)
    knows: set[str] = attrs.field(factory=set)
    used: Counter[str] = attrs.field(factory=Counter)


@attrs.define(eq=False)
class Watch:
    """Looks at every frame and page, and keeps the count.

    Attributes:
        publishers: Job → marks of users who may say something there.
        step: How many steps there have been; a leak is noted with it.
    """

    publishers: dict[str, set[bytes]] = attrs.field(factory=dict)
    step: int = 0
    frames: int = 0
    pages: int = 0
    job_events: int = 0
    denied: Counter[str] = attrs.field(factory=Counter)
    types: Counter[str] = attrs.field(factory=Counter)
    leaks: list[Leak] = attrs.field(factory=list)
    _owners: dict[bytes, str] = attrs.field(factory=dict)

    def look(self, reader: Reader, data: bytes, asked: Mapping[Any, Said] | None = None) -> None:
        """Check one frame as it came."""
        self.frames += 1
        fields = _object(data)
        self.job_events += fields is not None and "event_id" in fields and "job_id" in fields
        self._look_for_marks(reader, data, fields)
        if not _of_job(reader, fields):
            self._look_for_ids(reader, data, fields)
        if fields is not None:
            told = _told(fields)
            # The owner of another job hears it without a grant, and speaks there alone.
            owned = told.get("job_id") not in self.publishers
            its_own_word = owned and told.get("user_id") == reader.user
            heard = "event_id" in told or (not owned and ("seq" in told or "stream" in told))
            if heard and "job_id" in told and not its_own_word and not _of_job(reader, fields):
                self.note(reader, "a word of a job that was not granted", data)
            self.types[str(fields.get("type", "json-rpc"))] += 1
            self._look_at_answer(reader, data, fields, asked or {})
            reader.knows.update(_ids_in(fields))

    def look_at_page(self, reader: Reader, body: bytes) -> None:
        """Check the body of a page that was fetched as this user."""
        self.pages += 1
        self._look_for_marks(reader, body, None)
        self._look_for_ids(reader, body, _object(body))

    def look_at_rest(self, reader: Reader, data: bytes) -> None:
        """Check the piece of a frame before a cut, which may have gone through an id that this user has said."""
        tail = TAIL.search(data)
        if tail is not None and any(said.startswith(tail[0]) for said in reader.said):
            data = data[: tail.start()]
        self._look_for_marks(reader, data, None)

    def note(self, reader: Reader, what: str, data: bytes) -> None:
        """Note a leak, unless many are noted already."""
        if len(self.leaks) < MOST_LEAKS:
            self.leaks.append(Leak(self.step, reader.user, what, data))

    def _look_for_marks(self, reader: Reader, data: bytes, fields: Mapping[str, Any] | None) -> None:
        own = {reader.mark.encode()}
        if fields is not None and _of_job(reader, fields):
            own |= self.publishers.get(_told(fields)["job_id"], set())
        if not set(MARK.findall(data)) - own:
            return
        for said in reader.said:  # an id of another's that this user has said may be echoed
            data = data.replace(said, b"")
        if foreign := set(MARK.findall(data)) - own:
            self.note(reader, f"marks of others {foreign}", data)

    def _look_for_ids(self, reader: Reader, data: bytes, fields: Mapping[str, Any] | None) -> None:
        made = set(MADE.findall(data))
        made.update(epoch.encode() for epoch in _epochs(fields))
        for each in made:
            owner = self._owners.setdefault(each, reader.user)
            if owner != reader.user and each not in reader.said:
                self.note(reader, f"{each!r} belongs to {owner}", data)

    def _look_at_answer(
        self, reader: Reader, data: bytes, fields: Mapping[str, Any], asked: Mapping[Any, Said]
    ) -> None:
        said = asked.get(fields.get("id") if "jsonrpc" in fields else fields.get("reply_to"))
        answer = fields.get("error", {}).get("data", {}) if "jsonrpc" in fields and "error" in fields else fields
        if fields.get("user_id", reader.user) != reader.user and not _of_job(reader, fields):
            self.note(reader, "another's user_id", data)
        if said is None:
            return
        if answer.get("type") != "error":
            # By now: another tab of the same user may have made it meanwhile.
            if said.type in REFERRING and not reader.knows.issuperset(said.named):
                self.note(reader, f"{said.type} of something that this user cannot know", data)
            return
        code = answer["code"]
        self.denied[code] += 1
        if code == "NOT_FOUND" and answer["error"] not in {f"there is no such {what}" for what in MISSING}:
            self.note(reader, "an error text that tells more than it should", data)
        if code == "FORBIDDEN" and not answer["error"].startswith("this needs the permission "):
            self.note(reader, "a refusal that depends on more than the token", data)
        if code == "CONFLICT" and said.new and all(reader.used[each] == 1 for each in said.used):
            self.note(reader, "a conflict with what this user has never said", data)


def _of_job(reader: Reader, fields: Mapping[str, Any] | None) -> bool:
    """Whether this comes from a job that the user may read; such frames may tell of those who publish there."""
    return fields is not None and _told(fields).get("job_id") in reader.granted


def _told(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a frame tells: of JSON-RPC the result."""
    told = fields.get("result", fields) if "jsonrpc" in fields else fields
    return told if isinstance(told, Mapping) else fields


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(data)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _epochs(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "epoch" and isinstance(inner, str):
                yield inner
            yield from _epochs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _epochs(inner)


def _ids_in(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("thread_id", "run_id") and isinstance(inner, str):
                yield inner
            yield from _ids_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _ids_in(inner)
