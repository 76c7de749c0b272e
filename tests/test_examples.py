"""Every example runs as its first lines say, against a real server where it needs one."""

from __future__ import annotations

import ast
import json
import re
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from netra_ws.access import mint
from tests.agents.llm.endpoint import answer, call, fake_endpoint, finish, stream, used
from tests.test_cli import environment

EXAMPLES = Path(__file__).parents[1] / "examples"
SECRET = secrets.token_hex(32)
PATIENCE_S = 30.0
QUESTION = "What is 17% of 2,340?"


@attrs.frozen
class Running:
    url: str
    token: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of its own process, in the folder of the examples, with the examples' agents."""
    folder = tmp_path_factory.mktemp("examples")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "netra_ws", "--port", "0", "--store", "memory:"),
            *("--agent", "custom_agent:count_words", "--agent", "langgraph_or_pydantic_agent:agent"),
        ],
        cwd=EXAMPLES,
        env=environment(folder, {"NETRA_WS_AUTH_SECRET": SECRET, "PYTHONDONTWRITEBYTECODE": "1"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        ready, _, _ = select.select([process.stderr], [], [], PATIENCE_S)
        assert ready, "the server did not start"
        line = process.stderr.readline().strip()
        assert line.startswith("Listening on "), line
        yield Running(line.removeprefix("Listening on "), mint(SECRET, "alice", None, 600, time.time()))
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def run(folder: Path, name: str, *words: str) -> str:
    """Run an example to its end; return what it printed."""
    outcome = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_custom_agent_by_itself(tmp_path: Path) -> None:
    """The agent thinks, calls its tool and answers in a program of its own."""
    lines = run(tmp_path, "custom_agent.py", "to be or not to be").splitlines()
    assert lines[0] == "thinks: I will look at 18 characters"
    assert lines[2] == "got: {'to': 2, 'be': 2, 'or': 1}"
    assert lines[3].startswith("says: 'to' comes 2 times. 'be' comes 2 times.")
    assert lines[4].startswith("done: success after ")


def ask(folder: Path, server: Running, agent: str, text: str) -> list[dict[str, Any]]:
    """Ask an agent of the server from another process; return its events."""
    outcome = subprocess.run(
        [
            *(sys.executable, "-m", "netra_ws", "chat", "--url", server.url, "--token", server.token),
            *("--json", "--agent", agent, text),
        ],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def test_custom_agent_in_a_server(tmp_path: Path, server: Running) -> None:
    """The same agent answers through a server that was given it by --agent."""
    events = ask(tmp_path, server, "count_words", "to be or not to be")
    assert events[-1]["final_response"].startswith("'to' comes 2 times.")


def test_an_asyncio_framework_by_itself(tmp_path: Path) -> None:
    """An agent of pydantic-ai shows its tool and streams its answer in a program of its own."""
    lines = [line.strip() for line in run(tmp_path, "langgraph_or_pydantic_agent.py").splitlines()]
    assert lines.index("tool_completed  sunny") < lines.index("agent_message delta It")
    assert lines[-2:] == ["agent_message full It is sunny in Paris.", "agent_completed  It is sunny in Paris."]


def test_an_asyncio_framework_in_a_server(tmp_path: Path, server: Running) -> None:
    """The same agent answers through a server that was given it by --agent."""
    events = ask(tmp_path, server, "agent", "How is the weather?")
    assert [event["type"] for event in events if "tool" in event["type"]] == ["tool_executing", "tool_completed"]
    assert events[-1]["final_response"] == "It is sunny in Paris."


def test_embedded_server(tmp_path: Path) -> None:
    """The program serves, starts a run without a socket, and sees each event of it in order."""
    lines = run(tmp_path, "embedded_server.py", "--once", QUESTION).splitlines()
    assert re.fullmatch(r"serving at http://127\.0\.0\.1:\d+", lines[0])
    numbers = [int(line.split()[0]) for line in lines[1:-1]]
    assert numbers == sorted(set(numbers))
    assert lines[-1] == "success: 17% of 2,340 = 397.8"


def test_terminal_client(tmp_path: Path, server: Running) -> None:
    """The client prints tool and answer of each text, and where it stands."""
    out = run(tmp_path, "terminal_client.py", server.url, server.token, QUESTION, "What is 2*21?")
    assert "(calculate …)\n17% of 2,340 = 397.8\nsuccess" in out
    assert "2*21 = 42\nsuccess" in out


def test_third_party_client(tmp_path: Path, server: Running) -> None:
    """Another library's client loses its connection, resumes, and misses and doubles nothing."""
    url = server.url.replace("http", "ws") + "/ws"
    lines = run(tmp_path, "third_party_client.py", url, server.token, QUESTION).splitlines()
    cut = lines.index("back again, resumed: True")
    assert lines[cut - 1].endswith("agent_started")
    before = [int(line.split()[0]) for line in lines[:cut]]
    after = [int(line.split()[0]) for line in lines[cut + 1 : -1] if line[0] != "-"]
    assert after[0] == before[-1] + 1
    assert after == sorted(set(after))
    assert lines[-1] == "success: 17% of 2,340 = 397.8"


def test_tools_agent(tmp_path: Path) -> None:
    """Declared tools are called at the same time, with progress, pairs and a permission that the user has not."""
    lines = run(tmp_path, "tools_agent.py", "two espressos and a tea").splitlines()
    schema = json.loads(lines[0])
    assert schema["properties"]["order"]["properties"]["drink"]["enum"] == ["espresso", "tea"]
    events = [(word, json.loads(rest)) for word, _, rest in (line.partition(" ") for line in lines[1:])]
    done = {fields["tool_name"]: fields for word, fields in events if word == "tool_completed"}
    assert done["read_orders"]["results"] == [{"drink": "espresso", "count": 2}, {"drink": "tea", "count": 1}]
    brewed = [
        fields["results"] for word, fields in events if word == "tool_completed" and fields["tool_name"] == "brew"
    ]
    assert sorted(brewed) == ["1 × tea", "2 × espresso"]
    assert sum(word == "tool_progress" for word, _ in events) == 3
    assert done["open_till"]["status"] == "denied"
    assert events[-2][1]["content"] == "That is 7.80, please."


async def test_llm_agent(tmp_path: Path) -> None:
    """A model that speaks the protocol is asked by the example, uses its tools, and its answer comes piece by piece."""
    script = (
        stream(call("find_order", '{"order_id": "4711"}'), finish("tool_calls"), used(20, 4)),
        answer("It is ", "on its way.", prompt=40, completion=6),
    )
    async with fake_endpoint(*script) as endpoint:
        there = {"NETRA_WS_LLM_BASE_URL": endpoint.url, "NETRA_WS_LLM_MODEL": "m1", "NETRA_WS_LLM_API_KEY": "k" * 20}
        with trio.fail_after(PATIENCE_S):
            outcome = await trio.run_process(
                [sys.executable, str(EXAMPLES / "llm_agent.py"), "Where is order 4711?"],
                cwd=tmp_path,
                env=environment(tmp_path, there),
                capture_stdout=True,
                capture_stderr=True,
            )
        asked = [each.body for each in endpoint.asked]
    lines = outcome.stdout.decode().splitlines()
    assert lines[0] == "[find_order: ok {'order_id': '4711', 'state': 'on its way'}]"
    assert lines[1] == "It is on its way."
    assert lines[2].startswith("success  [{'provider': '127.0.0.1'") or lines[2].startswith("success  [{'provider':")
    assert (asked[0]["model"], asked[0]["temperature"]) == ("m1", 0.2)
    assert [each["function"]["name"] for each in asked[0]["tools"]] == ["find_order", "cancel_order"]
    assert asked[0]["messages"][0]["role"] == "system"


def test_approval_agent(tmp_path: Path) -> None:
    """The questions wait for a client that comes later; its answers are read as what they are."""
    lines = run(tmp_path, "approval_agent.py", "our new opening hours").splitlines()
    assert lines == [
        "asked: How shall it be published? (a form)",
        "asked: Send “New opening hours” to the newsletter? ['yes', 'no']",
        "success: Here is a draft: News about our new opening hours. Done: sent 51 characters to the newsletter.",
    ]


def test_job_board(tmp_path: Path) -> None:
    """Two users see every step of another user's agent, in its order, and the end of the job."""
    lines = run(tmp_path, "job_board.py", "cake-9").splitlines()
    steps = ["mix (1/4)", "rest (2/4)", "bake (3/4)", "glaze (4/4)", "job_disconnected"]
    for user in ("bob", "carol"):
        assert [line.removeprefix(f"{user} sees: ") for line in lines if line.startswith(user)] == steps
    assert "cake-9 is ready" in lines
    assert len(lines) == 2 * len(steps) + 1


def test_an_agent_as_a_package(tmp_path: Path) -> None:
    """An agent that is installed as a package is known to a server by its entry point, without a word elsewhere."""
    package = tmp_path / "agent_package"
    shutil.copytree(EXAMPLES / "agent_package", package)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), str(package)],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    program = (
        "import trio, netra_ws\n"
        "async def main():\n"
        "    settings = netra_ws.Settings.make({'server.port': 0, 'store.url': 'memory:'})\n"
        "    async with netra_ws.open_server(settings) as server:\n"
        "        async with server.context_for(netra_ws.Identity('alice')) as context:\n"
        "            print((await (await context.start('Oslo', agent='weather')).result()).final_response)\n"
        "trio.run(main)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(tmp_path, {"PYTHONPATH": str(tmp_path / "site")}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert re.fullmatch(r"Oslo: \w+, -?\d+ °C\.\n", outcome.stdout), outcome.stderr


def test_tests_of_an_agent(tmp_path: Path) -> None:
    """The tests of an agent that the example shows pass, wherever they are started."""
    assert " passed" in run(tmp_path, "test_my_agent.py")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_explained(path: Path) -> None:
    """An example fits on a screen or two and says first how to run it."""
    text = path.read_text()
    assert len(text.splitlines()) < 80
    assert f"python {path.name}" in (ast.get_docstring(ast.parse(text)) or "")
