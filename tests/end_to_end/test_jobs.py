"""Jobs in a real browser: a page that reads one over lost connections, and a console that is not disturbed by them."""

from __future__ import annotations

import re

import pytest

from .agents import MARKUP
from .needs import need
from .serving import ServerProcess
from .test_questions import staged

need("playwright.sync_api")

from playwright.sync_api import Browser, expect  # noqa: E402

from .window import open_window  # noqa: E402

pytestmark = pytest.mark.browser

#: Reads a job until its number 39, and cuts its own connection behind every ninth.
WATCH = """async ([url, token, jobId]) => {
  const { connect } = await import("/netra-ws.js");
  const sockets = [];
  class Cut extends WebSocket {
    constructor(...words) {
      super(...words);
      sockets.push(this);
    }
  }
  const session = connect(url, { token, WebSocket: Cut, random: () => 0.1 });
  const events = session.events({ jobId });
  await session.connectJob(jobId);
  window.watching = true;
  setTimeout(() => events.return(), 20_000); // longer than a person would wait
  const seen = [];
  for await (const event of events) {
    seen.push(event.type === "agent_event" ? event.value : event);
    if (event.value === 39) break;
    if (seen.length % 9 === 0) sockets.at(-1).close();
  }
  const seq = await session.publishJob(jobId, "read", seen.length);
  const { [jobId]: position } = session.jobPositions;
  await session.disconnectJob(jobId);
  const left = Object.keys(session.jobPositions).length;
  await session.close();
  return { seen, sockets: sockets.length, heard: position.seq, seq, left };
}"""
#: Starts that and returns at once, so that the test can go on.
BEGIN = f"(words) => {{ window.watched = ({WATCH})(words); }}"


def test_a_page_reads_a_job_over_lost_connections(browser: Browser, server: ServerProcess) -> None:
    """A page misses and doubles nothing of a job that another user's agent writes, whatever becomes of its socket."""
    with open_window(browser, server) as builder, open_window(browser, server) as reader:
        builder.sign_in("builder")
        reader.sign_in("reader")
        allowed = server.token("reader", permissions=["read", "job:e2e-*", "job:publish"])
        reader.page.evaluate(BEGIN, [server.socket_url, allowed, "e2e-1"])
        reader.until("window.watching === true")
        run = builder.ask("e2e-1", agent="building")
        expect(run.get_by_test_id("message-assistant")).to_contain_text("38 39")
        watched = reader.page.evaluate("window.watched")
        assert watched["seen"] == list(range(40))
        assert watched["sockets"] == 5
        assert (watched["seq"], watched["left"]) == (41, 0)
        assert watched["heard"] in (40, 41)


def test_events_of_no_thread_leave_the_console_alone(browser: Browser, server: ServerProcess) -> None:
    """What a program says to the user, and whatever comes of a job, breaks nothing and stands in no conversation."""
    of_a_job = {"job_id": "build-7", "event_id": "j", "timestamp": 1.0, "user_id": "bob", "seq": 900}
    with staged(browser, server) as (stage, window):
        shown = window.get("message-assistant").count()
        stage.announce("note", {"text": MARKUP})
        stage.say({"type": "agent_event", "name": "step", "value": MARKUP, **of_a_job})
        stage.say({"type": "agent_event", "name": "step", "value": 1, "run_id": "r1", "agent_name": "x", **of_a_job})
        stage.say({"type": "stream_reset", "epoch": "j", "seq": 1, "reason": "trimmed", "job_id": "build-7"})
        done = {"from_seq": 0, "to_seq": 900, "count": 1, "complete": True, "reason": None}
        stage.say({"type": "replay_completed", "epoch": "e", "job_id": "build-7", **done})
        stage.say({"type": "job_disconnected", "job_id": "build-7"})
        assert window.get("message-assistant").count() == shown
        stage.event("agent_message", message_id="a", phase="full", content="Planned.", role="assistant")
        stage.end(response="Planned.")
        expect(window.get("message-assistant").last).to_have_text("Planned.")
        window.expect_status("success")
        expect(window.page.locator("#position")).to_have_text(re.compile(rf":{len(stage.log)}$"))
        assert MARKUP not in window.run("document.body.innerText")
        window.page.reload()
        expect(window.get("message-user")).to_have_count(1)
