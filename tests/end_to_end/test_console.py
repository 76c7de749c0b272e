"""The console in a real browser against a real server, as a person uses it."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from pathlib import Path

import pytest

from .agents import INTERNALS, MARKUP
from .needs import need
from .serving import ServerProcess, running_server

need("playwright.sync_api")

from playwright.sync_api import Browser, TimeoutError, expect  # noqa: A004, E402

from .window import Window, open_window  # noqa: E402

pytestmark = pytest.mark.browser

ALL_WORDS = re.compile(r"^" + "".join(f"word{number} " for number in range(30)).rstrip() + r"\s*$")
NO_CONNECTION = r"WebSocket connection to .* failed|ERR_CONNECTION_REFUSED"
REFUSED = r"the server responded with a status of 401"
USAGE = [
    {"timestamp": "2026-03-01T10:00:00Z", "model": "large", "input_tokens": 1200, "output_tokens": 300},
    {"timestamp": "2026-03-01T11:00:00Z", "model": "small", "input_tokens": 400, "output_tokens": 100},
    {"timestamp": "2026-03-02T09:00:00Z", "model": "large", "input_tokens": 800, "output_tokens": 200},
]


def test_login_link_signs_in_and_its_token_leaves_the_address_bar(browser: Browser, server: ServerProcess) -> None:
    """The login link signs in at once; the token stays neither in the address nor in the window's history."""
    with open_window(browser, server) as window:
        link = server.login("ada")
        window.page.goto(link)
        window.expect_connected()
        assert window.page.url == f"{server.url}/"
        window.expect_text(window.get("user"), "ada")
        assert window.run("history.length") <= 2
        assert link.rpartition(".")[2] not in window.run("document.documentElement.outerHTML")
        assert window.run("Object.keys(localStorage).length") == 0


def test_question_is_answered_step_by_step(browser: Browser, server: ServerProcess, tmp_path: Path) -> None:
    """All five critical events of an answer are shown: it runs, thinks, uses a tool, has its results, is done."""
    with open_window(browser, server) as window:
        window.sign_in("steps")
        awaited = tmp_path / "awaited"
        window.say(str(awaited), agent="patient")
        run = window.page.locator(".run")
        expect(run.get_by_test_id("run-status")).to_have_attribute("data-status", "running")
        expect(window.get("stop")).to_be_visible()
        tool = run.get_by_test_id("tool")
        expect(tool).to_have_attribute("data-status", "executing")
        expect(tool.get_by_test_id("tool-parameters")).to_have_text('{"minutes": 1}')
        expect(tool.locator("progress")).to_have_attribute("value", "0.5")
        expect(run.get_by_test_id("message-assistant")).to_have_text("waiting ")
        expect(run.get_by_test_id("message-assistant")).to_have_attribute("data-streaming", "true")
        awaited.touch()
        window.expect_status("success")
        expect(run.get_by_test_id("thinking")).to_contain_text("Waiting for a file")
        expect(run.get_by_test_id("message-assistant")).to_have_text("waiting found")
        expect(run.locator("[data-streaming]")).to_have_count(0)
        expect(tool).to_have_attribute("data-status", "ok")
        expect(tool.get_by_test_id("tool-results")).to_have_text('{"found": true}')
        expect(window.get("stop")).to_have_count(0)
        # In the order in which they came.
        names = window.run("[...document.querySelector('.run-body').children].map((child) => child.dataset.testid)")
        assert names == ["thinking", "tool", "message-assistant"]


def test_assistant_calculates_tells_the_time_and_searches(browser: Browser, server: ServerProcess) -> None:
    """The assistant of the first start answers with real tools, and the sidebar names the conversation."""
    with open_window(browser, server) as window:
        window.sign_in("curious")
        window.page.get_by_role("button", name="What is 17% of 2,340?").click()
        window.expect_status("success")
        expect(window.get("message-assistant")).to_have_text("17% of 2,340 = 397.8")
        expect(window.get("tool-results")).to_have_text('{"value": 397.8}')
        run = window.ask("What time is it in Tokyo?")
        expect(run.get_by_test_id("message-assistant")).to_contain_text("Asia/Tokyo (UTC+09:00)")
        run = window.ask("Search my messages for 2,340")
        expect(run.get_by_test_id("message-assistant")).to_contain_text("you: What is 17% of 2,340?")
        expect(window.get("thread")).to_have_text([re.compile("^What is 17% of 2,340?")])
        expect(window.page).to_have_title("What is 17% of 2,340? – netra_ws")


def test_stop_button_stops_the_run(browser: Browser, server: ServerProcess) -> None:
    """Stop ends a running agent, its tool included; what it had said stays, and the next question is answered."""
    with open_window(browser, server) as window:
        window.sign_in("hasty")
        window.say("take your time", agent="slow")
        expect(window.get("message-assistant")).to_contain_text("word3")
        window.get("stop").click()
        window.expect_status("cancelled")
        expect(window.get("run-status")).to_contain_text("Stopped by you")
        expect(window.get("tool")).to_have_attribute("data-status", "cancelled")
        said = window.texts("message-assistant")[0]
        assert "word3" in said
        window.ask("What is 2 + 3?", agent="assistant")
        assert window.texts("message-assistant") == [said, "2 + 3 = 5"]
        window.page.reload()
        window.expect_connected()
        expect(window.get("message-assistant")).to_have_text([said.strip(), "2 + 3 = 5"])


def test_failed_run_says_so_without_internals(browser: Browser, server: ServerProcess) -> None:
    """An agent that breaks is shown as failed, and its exception's text stays on the server."""
    with open_window(browser, server) as window:
        window.sign_in("unlucky")
        window.say("please", agent="broken")
        window.expect_status("error")
        expect(window.get("tool")).to_have_attribute("data-status", "error")
        expect(window.page.locator(".run").get_by_test_id("error")).to_have_count(2)  # of the tool and of the run
        assert INTERNALS not in window.run("document.body.innerText")


def test_markup_stays_text(browser: Browser, server: ServerProcess) -> None:
    """Markup in questions, titles, thoughts, tools, results, events and answers is shown and never becomes elements."""
    with open_window(browser, server) as window:
        window.sign_in("<i>mallory</i>")
        count = "document.querySelectorAll('body img, body script, body b, body i, #conversation a').length"
        before = window.run(count)
        window.ask(MARKUP, agent="markup")
        window.run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        window.get("rename-thread").click()
        window.page.locator("#rename-input").fill(f"{MARKUP} title")
        window.page.keyboard.press("Enter")
        expect(window.get("thread")).to_contain_text(f"{MARKUP} title")
        expect(window.page.locator("#title")).to_have_text(f"{MARKUP} title")
        for place in ("message-user", "message-assistant", "thinking", "tool", "run-status"):
            expect(window.get(place)).to_contain_text(MARKUP)
        for place in ("tool-parameters", "tool-results"):
            expect(window.get(place)).to_contain_text(json.dumps(MARKUP))
        expect(window.get("user")).to_have_text("<i>mallory</i>")
        assert window.run(count) == before
        window.page.reload()  # and once more from the history
        expect(window.get("message-assistant")).to_contain_text(MARKUP)
        assert window.run(count) == before


def test_reload_in_mid_run_goes_on_without_doubled_text(browser: Browser, server: ServerProcess) -> None:
    """After a reload the running answer goes on, with its steps, each word once."""
    with open_window(browser, server) as window:
        window.sign_in("impatient")
        window.say("take your time", agent="slow")
        expect(window.get("message-assistant")).to_contain_text("word5")
        for _ in range(2):
            window.page.reload()
            expect(window.get("message-assistant")).to_contain_text("word")
            words = len(window.texts("message-assistant")[0].split())
            expect(window.get("message-assistant")).to_contain_text(f"word{words + 5}")
        window.get("stop").click()
        window.expect_status("cancelled")
        [said] = window.texts("message-assistant")
        assert said.split() == [f"word{number}" for number in range(len(said.split()))]
        assert len(said.split()) > 15
        expect(window.get("message-user")).to_have_text(["take your time"])
        expect(window.get("thinking")).to_have_count(1)
        expect(window.get("tool")).to_have_count(1)
        expect(window.get("tool")).to_have_attribute("data-status", "cancelled")


def test_killed_server_is_found_again_and_the_lost_run_is_told(browser: Browser, tmp_path: Path) -> None:
    """After kill -9 and a restart the page reconnects by itself, shows the run as lost, and has all its history."""
    with running_server(tmp_path) as server, open_window(browser, server) as window:
        window.sign_in("survivor")
        window.ask("What is 6 * 7?")
        window.say("take your time", agent="slow")
        expect(window.get("message-assistant").nth(1)).to_contain_text("word3")
        server.kill()
        expect(window.get("state")).to_have_text(re.compile(r"econnecting|Connecting|no connection"))
        server.start()
        window.expect_connected()
        window.expect_status("lost")
        expect(window.get("run-status").last).to_contain_text("Lost when the server stopped")
        expect(window.get("tool").last).to_have_attribute("data-status", "cancelled")
        expect(window.get("stop")).to_have_count(0)
        expect(window.get("message-user")).to_have_text(["What is 6 * 7?", "take your time"])
        window.ask("What is 1 + 1?", agent="assistant")
        window.page.reload()
        window.expect_connected()
        expect(window.get("message-user")).to_have_text(["What is 6 * 7?", "take your time", "What is 1 + 1?"])
        expect(window.get("message-assistant").first).to_have_text("6 * 7 = 42")
        expect(window.get("message-assistant").last).to_have_text("1 + 1 = 2")
        window.forgive(NO_CONNECTION)


def test_users_never_see_each_other(browser: Browser, server: ServerProcess) -> None:
    """What one user asks and is answered never reaches another user's window, list or search."""
    with open_window(browser, server) as ada, open_window(browser, server) as bob:
        ada.sign_in("ada lovelace")
        bob.sign_in("bob")
        ada.say("count for me", agent="brief")
        bob.ask("Search my messages for pomegranate")
        ada.expect_status("success")
        ada.ask("my secret is pomegranate", agent="echo")
        found = bob.ask("Search my messages for pomegranate")
        expect(found.get_by_test_id("message-assistant")).to_contain_text("found 2 of your messages")  # his own search
        bob.page.reload()
        bob.expect_connected()
        seen = bob.run("document.body.innerText")
        assert "word1" not in seen
        assert "my secret" not in seen
        assert "ada" not in seen
        expect(bob.get("thread")).to_have_count(1)


def test_second_tab_follows_live(browser: Browser, server: ServerProcess) -> None:
    """Another tab of the same user lists the conversation, follows it word by word, and can stop it."""
    with open_window(browser, server) as window:
        window.sign_in("twice")
        tab = window.beside("twice")
        window.say("take your time", agent="slow")
        expect(tab.get("thread")).to_have_count(1)
        tab.get("thread").click()
        expect(tab.get("message-user")).to_have_text(["take your time"])
        expect(tab.get("message-assistant")).to_contain_text("word9")
        expect(tab.get("tool")).to_have_attribute("data-status", "executing")
        tab.get("stop").click()
        tab.expect_status("cancelled")
        window.expect_status("cancelled")
        assert window.texts("message-assistant") == tab.texts("message-assistant")
        window.page.bring_to_front()
        window.get("delete-thread").click()
        window.get("delete-confirm").click()
        expect(tab.get("thread")).to_have_count(0)
        expect(tab.page.locator("#empty")).to_be_visible()


def test_keyboard_is_enough(browser: Browser, server: ServerProcess) -> None:
    """Signing in, asking, stopping, renaming and moving between conversations need no mouse."""
    with open_window(browser, server) as window:
        window.page.goto(server.url)
        keyboard = window.page.keyboard
        expect(window.get("sign-in-token")).to_be_focused()
        window.get("sign-in-token").fill(server.token("typist"))
        keyboard.press("Tab")
        keyboard.press("Enter")
        window.expect_connected()
        expect(window.get("composer")).to_be_focused()
        keyboard.type("What is")
        keyboard.press("Shift+Enter")
        keyboard.type("4 * 5?")
        keyboard.press("Enter")
        window.expect_status("success")
        expect(window.get("message-user")).to_have_text("What is\n4 * 5?", use_inner_text=True)
        expect(window.get("composer")).to_be_focused()
        stops = _tab_stops(window)
        assert stops[0] == "new-thread"
        in_order = [stop for stop in stops if stop in ("new-thread", "thread", "rename-thread", "composer", "sign-out")]
        assert in_order == ["new-thread", "thread", "rename-thread", "composer", "sign-out"]
        assert {"attach", "agent", "delete-thread", "tool-parameters"} <= set(stops)
        window.get("rename-thread").focus()
        keyboard.press("Enter")
        keyboard.type("Multiplication")
        keyboard.press("Enter")
        expect(window.page.locator("#rename-dialog")).to_be_hidden()
        expect(window.page.locator("#title")).to_have_text("Multiplication")
        expect(window.get("rename-thread")).to_be_focused()
        window.get("composer").focus()
        window.get("agent").select_option("slow")
        keyboard.type("take your time")
        keyboard.press("Enter")
        expect(window.get("message-assistant").last).to_contain_text("word2")
        window.get("delete-thread").focus()
        keyboard.press("Enter")
        keyboard.press("Escape")  # closes the question, and nothing else
        expect(window.page.locator("#delete-dialog")).to_be_hidden()
        window.expect_status("running")
        keyboard.press("Escape")
        window.expect_status("cancelled")


def _tab_stops(window: Window) -> list[str]:
    """Walk once through the page with Tab and name what is focused; every stop has to be visible as such."""
    window.get("new-thread").focus()
    window.page.keyboard.press("Shift+Tab")
    stops: list[str] = []
    for _ in range(40):
        window.page.keyboard.press("Tab")
        name, outline = window.run(
            "[document.activeElement.dataset.testid || document.activeElement.id || document.activeElement.tagName,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name == "" or name in stops[:1]:
            break
        assert outline != "none" or name == "composer", f"{name} does not show that it is focused"
        stops.append(name)
    return stops


def test_bad_token_asks_for_another_one(browser: Browser, server: ServerProcess) -> None:
    """A token that is malformed, signed elsewhere or expired leads to the sign-in form with the reason."""
    with open_window(browser, server) as window:
        problem = window.page.locator("#sign-in-error")
        window.page.goto(f"{server.url}/#token=nonsense")
        expect(problem).to_have_text(re.compile("not a token"))
        head, payload, _ = server.token("forger").split(".")
        window.get("sign-in-token").fill(f"{head}.{payload}.{'A' * 43}")
        window.get("sign-in").click()
        expect(problem).to_have_text(re.compile("not accept this token.*not signed here"))
        window.get("sign-in-token").fill(server.token("late", expires_s=-60))
        window.get("sign-in").click()
        expect(problem).to_have_text(re.compile("expired"))
        assert window.run("sessionStorage.length") == 0
        window.get("sign-in-token").fill(server.login("on time"))  # the whole link instead of the token
        window.get("sign-in").click()
        window.expect_connected()
        window.get("sign-out").click()
        expect(window.get("sign-in-token")).to_be_visible()
        assert window.run("sessionStorage.length") == 0
        expect(problem).to_be_hidden()
        window.forgive(NO_CONNECTION)
        window.forgive(REFUSED)


def test_token_that_expires_meanwhile(browser: Browser, tmp_path: Path) -> None:
    """Before a token expires the page says so; when it has, the sign-in form tells why."""
    with running_server(tmp_path, **{"auth.expiry_grace_s": 0.5}) as server, open_window(browser, server) as window:
        window.page.goto(server.login("brief visit", expires_s=1.5))
        window.expect_connected()
        expect(window.page.locator("#notices")).to_contain_text("expires")
        expect(window.page.locator("#sign-in-error")).to_contain_text("expired")


def test_who_is_signed_out_sees_why(browser: Browser, server: ServerProcess) -> None:
    """An operator's kick brings back the sign-in form with the reason, and the old token is of no use there."""
    with open_window(browser, server) as window:
        link = server.login("kicked")
        window.page.goto(link)
        window.expect_connected()
        body = json.dumps({"user_id": "kicked", "reason": "lost laptop"}).encode()
        bearer = server.token("boss", permissions=["operator"])
        headers = {"Authorization": f"Bearer {bearer}"}
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/ws/kick", body, headers, method="POST")).close()
        expect(window.page.locator("#sign-in-error")).to_contain_text("signed out by an operator (“lost laptop”)")
        window.page.goto("about:blank")
        window.page.goto(link)
        expect(window.page.locator("#sign-in-error")).to_contain_text("revoked")
        window.forgive(REFUSED)
        window.forgive(NO_CONNECTION)


def test_tab_without_room_says_so(browser: Browser, tmp_path: Path) -> None:
    """A tab that is one too many tells what may be wrong, goes on trying, and gets in when there is room."""
    limits = {"limits.max_connections_per_user": 1}
    with running_server(tmp_path, **limits) as server, open_window(browser, server) as window:
        window.sign_in("crowd")
        tab = Window(server, window.page.context.new_page(), window.complaints)
        tab.page.goto(server.login("crowd"))
        expect(tab.page.locator("#notices")).to_contain_text("too many connections of yours may be open")
        window.page.close()
        with contextlib.suppress(TimeoutError):  # it may have come in by itself, and the button is gone then
            tab.page.get_by_role("button", name="Connect now").click(timeout=2000)
        tab.expect_connected()
        window.forgive(NO_CONNECTION)


def test_usage_logs_are_analysed(browser: Browser, server: ServerProcess) -> None:
    """An attached .jsonl file goes along with the question and comes back as sums by model and by day."""
    with open_window(browser, server) as window:
        window.sign_in("accountant")
        log = "\n".join(map(json.dumps, USAGE)).encode()
        choose = window.page.locator("#attach-file")
        choose.set_input_files({"name": "broken.jsonl", "mimeType": "application/jsonl", "buffer": b'{"a": 1}\nno\n'})
        expect(window.page.locator("#notices")).to_contain_text("line 2 is no JSON")
        choose.set_input_files({"name": "usage.jsonl", "mimeType": "application/jsonl", "buffer": log})
        expect(window.page.locator("#attachment-name")).to_contain_text("usage.jsonl")
        run = window.ask("How much did we use?")
        expect(window.page.locator("#attachment")).to_be_hidden()
        expect(run.get_by_test_id("tool")).to_contain_text("analyze_usage")
        answer = run.get_by_test_id("message-assistant")
        expect(answer).to_contain_text("3 calls, 3,000 tokens")
        expect(answer).to_contain_text("large: 2 calls, input 2,000, output 500")
        expect(answer).to_contain_text("2026-03-02: 1 calls")
        expect(window.get("message-user")).to_contain_text("usage.jsonl")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Browser, server: ServerProcess, scheme: str) -> None:
    """In light and in dark every visible text has a contrast of at least 4.5 to what is behind it (WCAG 2.1 AA)."""
    with open_window(browser, server, color_scheme=scheme) as window:
        window.sign_in(f"{scheme} reader")
        window.ask("What is 17% of 2,340?")
        window.ask("What is 1/0?")
        window.say("please", agent="broken")
        window.expect_status("error")
        ground = window.run("getComputedStyle(document.body).backgroundColor")
        lightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 765
        assert lightness > 0.9 if scheme == "light" else lightness < 0.15
        faint = window.run(_FAINT_TEXTS)
        assert faint == []


_FAINT_TEXTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const color = numbers(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (walker.currentNode.data.trim() === "" || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest(":disabled, .visually-hidden, option")) continue;
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


def test_narrow_window(browser: Browser, server: ServerProcess) -> None:
    """On a phone's screen nothing is cut off sideways, and the conversations are in a drawer."""
    with open_window(browser, server, viewport={"width": 360, "height": 640}, has_touch=True) as window:
        window.sign_in("traveller with a rather long name that has no end in sight")
        window.ask("What is 17% of 2,340?")
        window.ask("W" * 300, agent="echo")
        wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert window.run(wider) == 0
        assert window.run("(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(scroller)") == 0
        assert window.page.locator("#state").bounding_box()["x"] < 340  # type: ignore[index]
        expect(window.get("thread")).to_be_hidden()
        window.page.get_by_role("button", name="Show the conversations").tap()
        expect(window.get("thread")).to_be_visible()
        window.page.keyboard.press("Escape")
        expect(window.get("thread")).to_be_hidden()
        window.page.get_by_role("button", name="Show the conversations").tap()
        window.get("new-thread").tap()
        expect(window.page.locator("#empty")).to_be_visible()
        assert window.run(wider) == 0


def test_end_stays_in_view_when_the_window_shrinks(browser: Browser, server: ServerProcess) -> None:
    """Who reads the end of a conversation still sees it when a keyboard opens, and who reads above it stays there."""
    with open_window(browser, server, viewport={"width": 390, "height": 844}) as window:
        window.sign_in("shrinking")
        for number in range(4):
            window.ask(f"What is {number} + 1?", agent="assistant")
        distance = "scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
        window.page.set_viewport_size({"width": 390, "height": 480})
        expect(window.get("run-status").last).to_be_in_viewport()
        assert window.run(distance) < 2
        window.run("scroller.scrollTop = 0")
        window.page.wait_for_timeout(100)
        window.page.set_viewport_size({"width": 390, "height": 600})
        window.page.wait_for_timeout(100)
        assert window.run("scroller.scrollTop") == 0


def test_long_answer_can_be_read_while_it_grows(browser: Browser, server: ServerProcess) -> None:
    """Scrolling up stops the page from following; a button leads back to the end."""
    with open_window(browser, server, viewport={"width": 800, "height": 400}) as window:
        window.sign_in("reader")
        for number in range(3):
            window.ask(f"What is {number} + 1?", agent="assistant")
        window.say("take your time", agent="slow")
        expect(window.get("message-assistant").last).to_contain_text("word5")
        window.run("scroller.scrollTop = 0")
        latest = window.page.get_by_role("button", name="Latest")
        expect(latest).to_be_visible()
        assert window.run("scroller.scrollTop") == 0
        latest.click()
        expect(window.get("stop")).to_be_in_viewport()
        expect(latest).to_be_hidden()
        window.get("stop").click()
        window.expect_status("cancelled")


def test_conversations_are_kept_apart(browser: Browser, server: ServerProcess) -> None:
    """While one conversation runs another one can be read; each keeps its own messages, also after a new start."""
    with open_window(browser, server) as window:
        window.sign_in("two minds")
        window.say("count for me", agent="brief")
        expect(window.get("message-assistant")).to_contain_text("word2")
        window.get("new-thread").click()
        expect(window.page.locator("#empty")).to_be_visible()
        window.ask("What is 2 ** 10?", agent="assistant")
        expect(window.get("message-user")).to_have_text(["What is 2 ** 10?"])
        expect(window.get("thread")).to_have_count(2)
        window.get("thread").filter(has_text="count for me").click()
        expect(window.get("message-user")).to_have_text(["count for me"])
        window.expect_status("success")
        expect(window.get("message-assistant")).to_have_text([ALL_WORDS])
        window.get("thread").filter(has_text="2 ** 10").click()
        expect(window.get("message-assistant")).to_have_text(["2 ** 10 = 1,024"])
