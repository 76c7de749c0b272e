"""Any value that the protocol can say, made from the fields of its own classes."""

from __future__ import annotations

import base64
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from hypothesis import strategies as st

from netra_ws.protocol.commands import Attachment, Kick, Text
from netra_ws.protocol.values import (
    MAX_SEQ,
    ClientTime,
    CommandId,
    Id,
    JobId,
    JsonlLogs,
    JsonObject,
    Page100,
    Page200,
    PositionText,
    Seconds,
    Seq,
    Title,
    TokenId,
    UserId,
)

INTEGERS = st.integers(-(2**63), 2**64 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(max_size=20), JSON, max_size=4)
IDS = st.text("ABCXYZabcxyz0189_.:-", min_size=1, max_size=128)
TIMES = (
    NUMBERS
    | INTEGERS
    | NUMBERS.map(repr)
    | st.integers(-(2**63), 2**63).map(str)
    | st.datetimes().map(lambda moment: moment.isoformat())
    | st.sampled_from(["2025-11-05T12:00:00Z", "2025-11-05T12:00:00.123+02:00"])
)
BASE64 = st.binary().map(lambda data: base64.b64encode(data).decode())
ATTACHMENTS = st.builds(Attachment, name=st.text(), media_type=st.text(), data=BASE64) | st.builds(
    Attachment, name=st.text(), media_type=st.text(), url=st.text()
)

_OF: Mapping[Any, st.SearchStrategy[Any]] = {
    Id: IDS,
    JobId: IDS,
    PositionText: st.from_regex(r"[a-f0-9]{1,64}:[0-9]{1,19}", fullmatch=True),
    CommandId: st.text(min_size=1, max_size=256),
    Title: st.text(max_size=512).map(str.strip),
    UserId: st.text("abcäß東 @", min_size=1, max_size=256),
    TokenId: st.text(min_size=1, max_size=300),
    Text: st.text(min_size=1).map(str.strip).filter(bool),
    Seconds: st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    Page100: st.integers(1, 100),
    Page200: st.integers(1, 200),
    Seq: st.integers(0, MAX_SEQ),
    ClientTime: TIMES,
    JsonObject: OBJECTS,
    JsonlLogs: st.text() | st.lists(OBJECTS, max_size=3),
    Attachment: ATTACHMENTS,
    Any: JSON,
    str: st.text(),
    int: INTEGERS,
    float: NUMBERS,
    bool: st.booleans(),
    types.NoneType: st.none(),
}


def of_type(type_: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a field of that type."""
    if type_ in _OF:
        return _OF[type_]
    origin = get_origin(type_)
    if origin is Literal:
        return st.sampled_from(get_args(type_))
    if origin in (Union, types.UnionType):
        return st.one_of(*map(of_type, get_args(type_)))
    if origin is list:
        return st.lists(of_type(get_args(type_)[0]), max_size=3)
    if type_ == Mapping[str, Any]:
        return OBJECTS
    assert attrs.has(type_), type_
    return of(type_)


def of(class_: type[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for instances of an attrs class of the protocol."""
    attrs.resolve_types(class_)
    made = st.builds(class_, **{field.name: of_type(field.type) for field in attrs.fields(class_)})
    if class_ is Kick:  # names exactly one of two
        return made.filter(lambda kick: (kick.user_id is None) != (kick.jti is None))
    return made


def least(class_: type[Any]) -> Any:
    """Return an instance with nothing but its required fields, for a look at what is left out."""
    if class_ is Kick:
        return Kick(user_id=UserId("x"))
    attrs.resolve_types(class_)
    return class_(**{f.name: _some(f.type) for f in attrs.fields(class_) if f.default is attrs.NOTHING})


def _some(type_: Any) -> Any:
    origin = get_origin(type_)
    if origin is Literal:
        return get_args(type_)[0]
    if origin in (Union, types.UnionType):
        return None if types.NoneType in get_args(type_) else _some(get_args(type_)[0])
    if origin is list:
        return []
    if type_ == Mapping[str, Any] or type_ is JsonObject:
        return {}
    if attrs.has(type_):
        return least(type_)
    return {str: "x", int: 1, float: 1.5, bool: True, Any: None, Seq: 1}.get(type_, "x")
