"""An MCP server of nothing but the standard library, which does what no good server does when it is asked to.

Usage: ``plain.py FOLDER [MODE]``. It signs in FOLDER with its process id, and writes there what it hears.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
MODE = sys.argv[2] if len(sys.argv) > 2 else "good"

ANYTHING = {"type": "object"}
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

#: Tools that take anything.
NAMES = """
    fail_with_text fail_silently refuse misanswer never die huge_line garbage progress flood ask
    big big_object big_number image mixed secret fill environment inquire
"""
#: Tools by name, with the schema of each.
TOOLS: dict[str, Any] = {"echo": TEXT, **dict.fromkeys(NAMES.split(), ANYTHING)}
#: What ``odd`` offers instead: what cannot be offered to a model, and what can only under another name.
ODD = [
    ("no.such.sign", ANYTHING),
    ("no_such_sign", ANYTHING),
    ("ütf", ANYTHING),
    ("***", ANYTHING),
    ("l" * 80, ANYTHING),
    ("not_a_schema", {"type": "object", "properties": {"a": {"type": "objekt"}}}),
    ("not_an_object", {"type": "object", "$ref": "#/nowhere"}),
    ("elsewhere", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}),
    ("too_large", {"type": "object", "description": "x" * 70_000}),
    ("fine", {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "integer"}}}),
    ("wordy", ANYTHING),
]


def send(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def answer(request: dict[str, Any], result: Any) -> None:
    send(id=request["id"], result=result)


def say(request: dict[str, Any], text: str, **more: Any) -> None:
    answer(request, {"content": [{"type": "text", "text": text}], **more})


def note(what: str) -> None:
    with (FOLDER / "heard.txt").open("a") as file:
        file.write(f"{what}\n")


def offers(request: dict[str, Any]) -> dict[str, Any]:
    cursor = (request.get("params") or {}).get("cursor")
    if MODE == "odd":
        words = {"wordy": {"description": "word " * 2000}, "fine": {"title": "A fine tool"}}
        return {"tools": [{"name": name, "inputSchema": schema, **words.get(name, {})} for name, schema in ODD]}
    if MODE == "endless":
        page = int(cursor or 0)
        return {"tools": [{"name": f"tool_{page}", "inputSchema": ANYTHING}], "nextCursor": str(page + 1)}
    tools = [{"name": name, "description": f"Does {name}.", "inputSchema": schema} for name, schema in TOOLS.items()]
    # In two pages, as a long list comes.
    return {"tools": tools[:3], "nextCursor": "3"} if cursor is None else {"tools": tools[3:]}


def ask(request: dict[str, Any]) -> None:
    """Ask for all that a server may ask a client for, and tell what was said."""
    form = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    sampling = {"messages": [], "maxTokens": 1}
    heard = []
    for method, params in (("sampling/createMessage", sampling), ("elicitation/create", form), ("roots/list", {})):
        send(id=f"ask-{method}", method=method, params=params)
        reply = json.loads(sys.stdin.readline())
        heard.append(f"{method} {'error' if 'error' in reply else 'result'}")
    say(request, ", ".join(heard))


FORMS: dict[str, Any] = {
    "pattern": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^(a|a)+$"}}},
    "unfit": {"type": "object", "properties": {"name": {"type": "objekt"}}},
    "large": {"type": "object", "properties": {"name": {"type": "string", "title": "x" * 70_000}}},
    "twice": {"type": "object", "properties": {}},
}


def inquire(request: dict[str, Any], form: str) -> None:
    """Ask the user, and tell what was said."""
    name = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    params = {"message": "What is your name?", "requestedSchema": FORMS.get(form, name)}
    if form == "link":
        params = {"mode": "url", "message": "Go there", "url": "https://example.com/", "elicitationId": "1"}
    first = f"first of {request['id']}"
    send(id=first, method="elicitation/create", params=params)
    if form == "twice":
        first = "second"
        send(id=first, method="elicitation/create", params=params)
    if form == "forgotten":
        time.sleep(0.3)
        say(request, "never mind")
        return
    reply: dict[str, Any] = {}
    while reply.get("id") != first:
        reply = json.loads(sys.stdin.readline())
    if "error" in reply:
        say(request, "error")
    else:
        answer(request, {"content": [], "structuredContent": reply["result"]})


def call(request: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    match name:
        case "echo":
            say(request, arguments["text"])
        case "fail_with_text":
            say(request, "the disk is full", isError=True)
        case "fail_silently":
            answer(request, {"content": [], "isError": True})
        case "refuse":
            send(id=request["id"], error={"code": -32602, "message": "no such thing"})
        case "misanswer":
            answer(request, {"content": "a text and not a list"})
        case "never":
            note("never")
        case "die":
            os._exit(3)
        case "huge_line":
            sys.stdout.write("x" * 5_000_000)
            sys.stdout.flush()
            time.sleep(60)
        case "garbage":
            for number in range(arguments.get("lines", 5)):
                print(f"{{garbage {number}", flush=True)
            say(request, "said between garbage")
        case "progress" | "flood":
            token = request["params"]["_meta"]["progressToken"]
            steps = 4 if name == "progress" else 20_000
            for number in range(steps):
                params = {"progressToken": token, "progress": number, "total": steps, "message": f"step {number}"}
                send(method="notifications/progress", params=params)
                time.sleep(0.15 if name == "progress" else 0)
            say(request, "done")
            send(method="notifications/progress", params={"progressToken": token, "progress": steps, "total": steps})
        case "ask":
            ask(request)
        case "inquire":
            inquire(request, arguments.get("form", ""))
        case "big":
            say(request, "é" * 300_000)
        case "big_object":
            say(request, "", structuredContent={"rows": ["x" * 100] * 4000})
        case "big_number":
            say(request, "", structuredContent={"number": 10**30})
        case "image":
            answer(request, {"content": [{"type": "image", "data": "AAECAw==", "mimeType": "image/png"}]})
        case "mixed":
            file = {"uri": "file:///a.txt", "mimeType": "text/plain", "text": "of a file"}
            blob = {"uri": "file:///a.bin", "blob": "AAECAwQF"}
            link = {"type": "resource_link", "uri": "file:///b", "name": "b"}
            more = [{"type": "resource", "resource": file}, {"type": "resource", "resource": blob}, link]
            answer(request, {"content": [{"type": "text", "text": "a text"}, *more]})
        case "secret":
            say(request, f"cannot log in with {os.environ.get('TOKEN', '')}", isError=True)
        case "environment":
            answer(request, {"content": [], "structuredContent": {"names": sorted(os.environ)}})
        case "fill":
            # It does not read any more, and says more than anybody reads.
            while True:
                send(id="again", method="ping")


def hear(request: dict[str, Any]) -> None:
    match request.get("method"):
        case "initialize":
            version = "1999-01-01" if MODE == "old" else request["params"]["protocolVersion"]
            about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "plain", "version": "1"}}
            answer(request, {"protocolVersion": version, **about})
        case "tools/list":
            if MODE == "unlisted":
                answer(request, {"tools": [{"name": "a", "inputSchema": 5}]})
            else:
                answer(request, offers(request))
                if MODE == "deaf" and request.get("params"):
                    time.sleep(600)
        case "tools/call":
            call(request, request["params"]["name"], request["params"].get("arguments") or {})
        case "notifications/cancelled":
            note("cancelled")


def complain() -> None:
    while True:
        os.write(2, b"a complaint of many \xff words\n" * 1000)


def main() -> None:
    (FOLDER / str(os.getpid())).touch()
    if MODE == "stays":
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        sign = "import os, sys, time; open(sys.argv[1] + '/' + str(os.getpid()), 'w').close(); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", sign, str(FOLDER)], start_new_session=True)
    if MODE == "complains":
        threading.Thread(target=complain, daemon=True).start()
    if MODE == "dies":
        print("cannot find the settings", file=sys.stderr)
        sys.exit(4)
    if MODE == "chatters":
        while True:
            print("starting up …", flush=True)
    for line in sys.stdin:
        if MODE != "mute":
            hear(json.loads(line))
    if MODE in ("stays", "mute"):
        time.sleep(600)
    note("asked to go")


main()
