"""Questions of agents, from ``run.ask`` to the console and back, with a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from .needs import need
from .serving import ServerProcess, running_server

need("playwright.sync_api")

from playwright.sync_api import Browser, expect  # noqa: E402

from .window import Window, open_window  # noqa: E402

pytestmark = pytest.mark.browser

NO_CONNECTION = r"WebSocket connection to .* failed|ERR_CONNECTION_REFUSED"


def _expect_answer(window: Window, text: str) -> None:
    window.expect_status("success")
    expect(window.get("message-assistant").last).to_have_text(text)


def test_choice_in_one_of_two_tabs(browser: Browser, server: ServerProcess) -> None:
    """A question is open in every tab of its user; the first answer counts, and both tabs show it."""
    with open_window(browser, server) as window:
        window.sign_in("two tabs")
        window.say("choice", agent="inquiring")
        expect(window.get("choice")).to_have_count(2)
        tab = window.beside("two tabs")
        tab.get("thread").click()
        expect(tab.get("choice")).to_have_count(2)
        tab.get("choice").first.click()
        expect(tab.get("input-answer")).to_have_text("You answered:yes")
        expect(window.get("input-answer")).to_have_text("Answered in another place:yes")
        for each in (window, tab):
            _expect_answer(each, "answer: yes")


def test_form_of_a_class(browser: Browser, server: ServerProcess) -> None:
    """A form made from an attrs class comes back as one; what the server alone can see is told at its field."""
    with open_window(browser, server) as window:
        window.sign_in("sender")
        window.say("form", agent="inquiring")
        form = window.get("form")
        form.get_by_label("Recipient").fill("Ada")
        form.get_by_label("Boxes").fill("2")
        form.get_by_label("Day").fill("2026-12-24")
        form.get_by_label("Speed").select_option("fast")
        form.get_by_label("Street").fill("Main Street 1")
        form.get_by_label("Zip").fill("1234")
        form.get_by_label("insurance").check()
        window.get("answer").click()
        expect(form.get_by_label("Zip")).to_have_accessible_description("At least 5 characters; these are 4.")
        form.get_by_label("Zip").fill("12345")
        form.get_by_label("Order").fill("A-17")  # what this has to be, the form does not know
        window.get("answer").click()
        expect(form.get_by_label("Order")).to_have_attribute("aria-invalid", "true")
        expect(form.get_by_label("Order")).to_be_focused()
        expect(form.get_by_label("Street")).to_have_value("Main Street 1")
        form.get_by_label("Order").fill("6f1c9a4e-6d1b-4e1c-9a55-0d3a3b1f7c11")
        window.get("answer").click()
        expect(window.get("input-answer")).to_contain_text("Main Street 1")
        window.expect_status("success")
        said = window.texts("message-assistant")[-1]
        assert "Delivery(recipient='Ada', boxes=2, day=datetime.date(2026, 12, 24), speed='fast'" in said
        assert "extras=['insurance'], note=None, express=False)" in said


def test_decline_is_told_to_the_agent(browser: Browser, server: ServerProcess) -> None:
    """An agent hears that its question was declined, and goes on."""
    with open_window(browser, server) as window:
        window.sign_in("shy")
        window.say("text", agent="inquiring")
        window.get("decline").click()
        expect(window.get("input-answer")).to_have_text("You declined.")
        _expect_answer(window, "no answer: cancelled")


def test_expiry(browser: Browser, server: ServerProcess) -> None:
    """A question that nobody answers in time is closed in front of the user, and the agent goes on."""
    with open_window(browser, server) as window:
        window.sign_in("late")
        window.say("choice 1.5", agent="inquiring")
        expect(window.get("input-expiry")).to_contain_text("left to answer")
        expect(window.get("input-answer")).to_have_text("Nobody answered in time.")
        _expect_answer(window, "no answer: expired")


def test_reload_while_it_waits(browser: Browser, server: ServerProcess) -> None:
    """A question is there after a reload, once, and can be answered."""
    with open_window(browser, server) as window:
        window.sign_in("reloading")
        window.say("text", agent="inquiring")
        expect(window.get("input-text")).to_be_visible()
        for _ in range(2):
            window.page.reload()
            window.expect_connected()
            expect(window.get("input-text")).to_be_focused()
            expect(window.get("input")).to_have_count(1)
            expect(window.get("thread-asks")).to_have_count(1)
        window.get("input-text").fill("Ada")
        window.get("input-text").press("Enter")
        _expect_answer(window, "answer: Ada")
        expect(window.get("thread-asks")).to_have_count(0)


def test_stop_closes_the_question(browser: Browser, server: ServerProcess) -> None:
    """Stop ends a run that waits for an answer, and its question with it."""
    with open_window(browser, server) as window:
        window.sign_in("stopping")
        window.say("choice", agent="inquiring")
        expect(window.get("choice")).to_have_count(2)
        window.get("stop").click()
        window.expect_status("cancelled")
        expect(window.get("input-answer")).to_have_text("Closed without an answer.")


@pytest.mark.parametrize("reload", [False, True])
def test_killed_server(browser: Browser, tmp_path: Path, reload: bool) -> None:
    """A server that was killed while a question waited closes it when it is back, also for a page loaded anew."""
    with running_server(tmp_path) as server, open_window(browser, server) as window:
        window.sign_in("unlucky")
        window.say("choice", agent="inquiring")
        expect(window.get("choice")).to_have_count(2)
        server.kill()
        if not reload:
            expect(window.get("state")).not_to_have_attribute("data-state", "open")
        server.start()
        if reload:
            window.page.reload()
        window.expect_connected()
        expect(window.get("thread-asks")).to_have_count(0)
        expect(window.get("choice")).to_have_count(0)
        if not reload:
            window.expect_status("lost")
            expect(window.get("input-answer")).to_have_text("Closed without an answer.")
        window.forgive(NO_CONNECTION)


def test_sub_runs(browser: Browser, server: ServerProcess) -> None:
    """Sub-runs that work at the same time stand below the call that started them; one of them asks."""
    with open_window(browser, server) as window:
        window.sign_in("delegating")
        window.say("go", agent="delegating")
        parts = window.page.locator(".tool + .sub-runs > .sub-run")
        expect(parts).to_have_count(2)
        expect(window.get("tool").first).to_contain_text("half of it")
        asks = parts.filter(has_text="asking")
        expect(asks.get_by_test_id("run-status").first).to_have_text("Waits for your answer")
        counting = parts.filter(has_text="brief").locator("> summary").get_by_test_id("run-status")
        expect(counting).to_have_attribute("data-status", "success")
        window.page.reload()
        expect(parts).to_have_count(2)
        expect(counting).to_have_attribute("data-status", "success")
        window.get("choice").first.click()
        expect(asks.locator("> summary").get_by_test_id("run-status")).to_have_attribute("data-status", "success")
        whole = window.page.locator(".run > .run-status")
        expect(whole).to_have_attribute("data-status", "success")
        expect(window.page.locator(".run > .run-body > [data-testid=message-assistant]")).to_have_text("surveyed")
