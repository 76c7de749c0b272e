"""Finds in the source what can hold things and what can wait, so that the table of bounds is complete."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import netra_ws

HOUSE = Path(netra_ws.__file__).parent

#: Rooms that run in somebody else's process, or only while a process starts: no part of a running server.
NOT_SERVING = frozenset(
    {"client", "session", "pending", "joined", "chat", "cli", "bench", "testing", "settings", "compat", "__main__"}
)

CONTAINERS = frozenset({"dict", "list", "set", "deque", "Counter", "OrderedDict", "defaultdict", "bytearray"})
LIMITERS = frozenset({"CapacityLimiter", "Semaphore", "open_memory_channel", "Queue", "SimpleQueue", "lru_cache"})
MUTATORS = frozenset({"append", "add", "setdefault", "update", "pop", "extend", "insert", "clear", "popleft"})
WAITING = frozenset(
    {
        "wait",
        "acquire",
        "acquire_on_behalf_of",
        "accept",
        "receive",
        "receive_some",
        "receive_eof",
        "send_all",
        "send_eof",
        "send",
        "sleep",
        "sleep_until",
        "sleep_forever",
        "wait_readable",
        "wait_writable",
        "run_sync",
        "get_message",
        "send_message",
        "aclose",
        "wait_task_rescheduled",
        "park",
        "open_tcp_listeners",
        "open_process",
        "wrap_server_stream",
    }
)


def sources() -> dict[str, str]:
    """Return the source of every file that a running server uses, by its path in the house."""
    files = (path.relative_to(HOUSE).as_posix() for path in sorted(HOUSE.rglob("*.py")))
    return {
        file: (HOUSE / file).read_text() for file in files if Path(file).with_suffix("").parts[0] not in NOT_SERVING
    }


def name_of(node: ast.AST) -> str:
    """Return the last word of what is named or called."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def holds(node: ast.AST | None) -> bool:
    """Whether the value of an assignment can hold a growing number of things, or limits how many there are."""
    if node is None:
        return False
    if isinstance(node, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp):
        return True
    if isinstance(node, ast.Call):
        if name_of(node) in CONTAINERS | LIMITERS:
            return True
        return any(
            keyword.arg == "factory" and (name_of(keyword.value) in CONTAINERS or _makes(keyword.value))
            for keyword in node.keywords
        )
    return False


def _makes(node: ast.AST) -> bool:
    return isinstance(node, ast.Lambda) and holds(node.body)


def _is_container_type(node: ast.AST) -> bool:
    return name_of(node) in CONTAINERS


def containers(source: str) -> Iterator[str]:
    """Yield ``Class.field``, ``function name`` or a module's name for everything that holds."""
    tree = ast.parse(source)
    yield from _module_names(tree)
    for class_ in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in class_.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fresh = isinstance(node.value, ast.Call) and _has_no_init(node.value)
                if holds(node.value) or (fresh and _is_container_type(node.annotation)):
                    yield f"{class_.name}.{node.target.id}"
        for node in ast.walk(class_):
            if isinstance(node, ast.Assign | ast.AnnAssign) and holds(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Attribute) and name_of(target.value) == "self":
                        yield f"{class_.name}.{target.attr}"
            if isinstance(node, ast.Call) and name_of(node) == "open_memory_channel":
                yield f"{class_.name} open_memory_channel"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and name_of(inner) in LIMITERS:
                    yield f"{node.name} {name_of(inner)}"
            if any(name_of(decorator) in ("cache", "lru_cache") for decorator in node.decorator_list):
                yield f"{node.name} cache"


def _has_no_init(call: ast.Call) -> bool:
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in call.keywords)


def _module_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names at the top of a module that hold things and are changed somewhere in it."""
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and holds(node.value)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    changed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed.add(name_of(node.func.value))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed.add(name_of(node.value))
    yield from sorted(names & changed)


def waits(source: str) -> Iterator[str]:
    """Yield the qualified name of every function that may wait for somebody, once."""
    seen = dict.fromkeys(_waiting_in(ast.parse(source), []))
    yield from seen


def _waiting_in(node: ast.AST, names: list[str]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [*names, child.name]
        waiting = isinstance(child, ast.Await) and isinstance(child.value, ast.Call) and _waits(child.value)
        waiting |= isinstance(child, ast.AsyncFor)
        waiting |= isinstance(child, ast.AsyncWith) and any("lock" in name_of(i.context_expr) for i in child.items)
        waiting |= (
            isinstance(child, ast.Call)
            and name_of(child) == "join"
            and not child.args
            and not isinstance(node, ast.Await)
        )
        if waiting:
            yield ".".join(names)
        yield from _waiting_in(child, inner)


def _waits(call: ast.Call) -> bool:
    # ``nursery.start`` waits for a task; a function of that name is one of ours.
    return name_of(call) in WAITING or (
        name_of(call) == "start" and name_of(getattr(call.func, "value", call)) == "nursery"
    )
