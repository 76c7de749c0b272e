"""Questions of agents and sub-runs in the console, in a real browser against a scripted server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .agents import MARKUP
from .forms import DELIVERY
from .needs import need
from .serving import ServerProcess
from .stage import RUN, Stage

need("playwright.sync_api")

from playwright.sync_api import Browser, expect  # noqa: E402

from .window import Window, open_window  # noqa: E402

pytestmark = pytest.mark.browser

FOCUSED = "document.activeElement.closest('.input')?.dataset.inputId ?? document.activeElement.id"
CHOICES = ["yes", "no"]


@contextmanager
def staged(browser: Browser, server: ServerProcess, **options: Any) -> Iterator[tuple[Stage, Window]]:
    """Open a window in front of a stage, with one run of a planner in one conversation."""
    with open_window(browser, server, **options) as window:
        stage = Stage()
        stage.attach(window.page)
        stage.begin()
        window.sign_in("ada")
        window.get("thread").click()
        expect(window.get("run-status")).to_have_attribute("data-status", "running")
        yield stage, window


def _answer(window: Window) -> None:
    window.get("answer").click()


def test_choice_is_one_click(browser: Browser, server: ServerProcess) -> None:
    """Choices are buttons; a click answers, and the question then says what was answered and by whom."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Publish this?", choices=CHOICES)
        expect(window.get("run-status")).to_have_text(re.compile("Waits for your answer"))
        expect(window.page.get_by_role("group", name="Publish this?")).to_be_visible()
        window.get("choice").nth(1).click()
        expect(window.get("input-answer")).to_have_text("You answered:no")
        expect(window.get("choice")).to_have_count(0)
        expect(window.get("run-status")).to_have_attribute("data-status", "running")
        assert [(said["input_id"], said["status"], said["value"]) for said in stage.said] == [("i1", "resolved", "no")]


def test_decline(browser: Browser, server: ServerProcess) -> None:
    """Every kind of question can be declined."""
    with staged(browser, server) as (stage, window):
        for number, more in enumerate(({"choices": CHOICES}, {"schema": DELIVERY}, {})):
            stage.ask(f"i{number}", "May I?", **more)
            window.get("decline").click()
            expect(window.get("input-answer").nth(number)).to_have_text("You declined.")
        assert [said["status"] for said in stage.said] == ["cancelled"] * 3


def test_text_is_answered_with_enter(browser: Browser, server: ServerProcess) -> None:
    """Without choices and schema the answer is a text: Enter sends it, Shift+Enter starts a line, nothing is none."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "What is its name?")
        field = window.get("input-text")
        field.press("Enter")
        expect(window.get("input-fault")).to_contain_text("write an answer")
        field.type("two")
        field.press("Shift+Enter")
        field.type("lines")
        field.press("Enter")
        expect(window.get("input-answer")).to_have_text("You answered:two\nlines")
        assert [said["value"] for said in stage.said] == ["two\nlines"]


def test_form(browser: Browser, server: ServerProcess) -> None:
    """A schema is a form with labels, help, marks and the right controls; what is filled in becomes its value."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Where shall it go?", schema=DELIVERY)
        form = window.get("form")
        kinds = "[...document.querySelectorAll('.form :is(input, select, textarea)')].map((each) => each.type)"
        ticks = ["checkbox"] * 3
        assert window.run(kinds) == [
            *(
                "text",
                "number",
                "date",
                "checkbox",
                "select-one",
                *ticks,
                "text",
                "text",
                "email",
                "textarea",
                "textarea",
            )
        ]
        expect(form.get_by_label("Recipient")).to_have_accessible_description("Who takes it at the door.")
        expect(form.get_by_role("group", name="Address")).to_be_visible()
        _answer(window)
        assert window.texts("field-fault")[0] == "This is needed."
        expect(form.get_by_label("Recipient")).to_be_focused()
        expect(form.get_by_label("Recipient")).to_have_attribute("aria-invalid", "true")
        expect(form.get_by_role("alert")).to_have_text("5 fields need another look.")
        form.get_by_label("Recipient").fill("Ada")
        expect(form.get_by_label("Recipient")).not_to_have_attribute("aria-invalid", "true")
        form.get_by_label("Boxes").fill("41")
        form.get_by_label("Delivery day").fill("2026-12-24")
        form.get_by_label("Express").check()
        form.get_by_label("Speed").select_option("at once")
        form.get_by_label("signature").check()
        form.get_by_label("gift wrap").check()
        form.get_by_label("Street").fill("Main Street 1")
        form.get_by_label("Zip").fill("1234")
        form.get_by_label("Rules").fill('{"a": 1')
        _answer(window)
        expect(form.get_by_role("alert")).to_have_text("3 fields need another look.")
        expect(form.get_by_label("Boxes")).to_be_focused()
        form.get_by_label("Boxes").fill("2")
        form.get_by_label("Zip").fill("12345")
        form.get_by_label("Rules").fill('{"a": 1}')
        form.get_by_label("Zip").press("Enter")
        expect(window.get("input-answer")).to_contain_text("Main Street 1")
        assert stage.said[-1]["value"] == {
            "recipient": "Ada",
            "boxes": 2,
            "day": "2026-12-24",
            "express": True,
            "speed": "at once",
            "extras": ["gift wrap", "signature"],
            "address": {"street": "Main Street 1", "zip": "12345"},
            "rules": {"a": 1},
        }
        assert len(stage.said) == 1


def test_optional_object_is_left_out_until_it_is_wanted(browser: Browser, server: ServerProcess) -> None:
    """An object that may be left out has a tick of its own; its fields come with it."""
    place = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    schema = {
        "type": "object",
        "properties": {"place": {"anyOf": [place, {"type": "null"}]}, "on": {"type": "boolean"}},
    }
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Where?", schema=schema)
        expect(window.page.get_by_label("City")).to_be_hidden()
        _answer(window)
        expect(window.get("input-answer")).to_have_count(1)
        stage.ask("i2", "Where?", schema=schema)
        window.page.get_by_label("Place").check()
        window.page.get_by_label("City").fill("Oslo")
        window.get("form").get_by_label("On").select_option("No")
        _answer(window)
        expect(window.get("input-answer")).to_have_count(2)
        assert [said["value"] for said in stage.said] == [{}, {"place": {"city": "Oslo"}, "on": False}]


def test_refused_value_is_told_at_its_field(browser: Browser, server: ServerProcess) -> None:
    """What the server does not take is told beside the field that it names; the form keeps what was filled in."""
    wrong = {"$.value.address.zip": "no such place", "$.value.boxes": "too many", "$.value.gone": "unexpected field"}
    with staged(browser, server) as (stage, window):
        stage.judge = lambda command: {"code": "INVALID_MESSAGE", "details": {"fields": wrong}}
        schema = {**DELIVERY, "required": ["address"]}
        stage.ask("i1", "Where shall it go?", schema=schema)
        form = window.get("form")
        form.get_by_label("Recipient").fill("Ada")
        form.get_by_label("Street").fill("Main Street 1")
        form.get_by_label("Zip").fill("99999")
        _answer(window)
        expect(form.get_by_label("Zip")).to_have_accessible_description("No such place.")
        expect(form.get_by_label("Boxes")).to_have_accessible_description("Too many.")
        expect(form.get_by_role("alert")).to_have_text("Unexpected field.")
        expect(form.get_by_label("Zip")).to_be_focused()
        expect(form.get_by_label("Recipient")).to_have_value("Ada")
        stage.judge = lambda command: None
        form.get_by_label("Zip").fill("12345")
        _answer(window)
        expect(window.get("input-answer")).to_contain_text("12345")


@pytest.mark.parametrize(
    ("code", "told", "usable"),
    [
        ("ALREADY_ANSWERED", "answered already", False),
        ("NOT_FOUND", "no longer open", False),
        ("RATE_LIMITED", "Not answered: no", True),
    ],
)
def test_refused_answer(browser: Browser, server: ServerProcess, code: str, told: str, usable: bool) -> None:
    """A refusal is told at the question, which can be used again where that may help."""
    with staged(browser, server) as (stage, window):
        stage.judge = lambda command: {"code": code}
        stage.ask("i1", "Publish this?", choices=CHOICES)
        window.get("choice").first.click()
        expect(window.get("input-fault")).to_contain_text(told)
        assert window.get("choice").first.is_enabled() is usable


def test_answer_of_another_tab_closes_the_question_here(browser: Browser, server: ServerProcess) -> None:
    """What is answered, declined or closed elsewhere closes here and says how; a half-filled form goes with it."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Where shall it go?", schema=DELIVERY)
        window.page.get_by_label("Recipient").fill("half a na")
        stage.settle("i1", "resolved", {"recipient": "Bob", "boxes": 3, "speed": "fast"})
        expect(window.get("input-answer")).to_contain_text("Answered in another place:")
        expect(window.get("input-answer")).to_contain_text("Recipient")
        expect(window.get("input-answer")).to_contain_text("Bob")
        expect(window.get("composer")).to_be_focused()
        for number, (status, by, words) in enumerate(
            (
                ("cancelled", "user", "Declined in another place."),
                ("cancelled", "server", "Closed without an answer."),
                ("expired", "server", "Nobody answered in time."),
            ),
            1,
        ):
            stage.ask(f"j{number}", "Now?", choices=CHOICES)
            stage.settle(f"j{number}", status, by=by)
            expect(window.get("input-answer").nth(number)).to_have_text(words)
        stage.ask("k", "And now?")
        stage.end("cancelled", cancelled_by="user")
        expect(window.get("input-answer").last).to_have_text("Closed without an answer.")


def test_time_that_is_left_is_counted(browser: Browser, server: ServerProcess) -> None:
    """A question tells until when it is open; in the last hour what is left is counted down."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Later?", choices=CHOICES, expires_at=time.time() + 200_000)
        expect(window.get("input-expiry").first).to_contain_text("Open until")
        stage.ask("i2", "Soon?", choices=CHOICES, expires_at=time.time() + 125)
        expect(window.get("input-expiry").last).to_have_text(re.compile(r"^2:0[0-4] left to answer$"))
        stage.ask("i3", "Now?", choices=CHOICES, expires_at=time.time() + 1.5)
        expect(window.get("input-expiry").last).to_have_text(re.compile(r"^[12] s left to answer$"))
        expect(window.get("input-expiry").last).to_have_text("The time for an answer is over")
        stage.ask("i4", "Whenever?", choices=CHOICES)
        expect(window.get("input-expiry").last).to_be_hidden()


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("log", ["whole", "trimmed", "without questions"])
def test_reload_keeps_what_waits(browser: Browser, server: ServerProcess, log: str, late: bool) -> None:
    """After a reload a question is there once, in its place, and can be answered, also when no replay brings it."""
    with staged(browser, server) as (stage, window):
        stage.event("agent_thinking", reasoning="hm", phase="full")
        names = stage.sub_run("s1", "pricing")
        stage.ask("i1", "Publish this?", choices=CHOICES)
        stage.ask("i2", "Which carrier?", choices=["a", "b"], **names)
        stage.ask("i0", "Over?", choices=CHOICES)
        stage.settle("i0", "resolved", "yes")
        stage.trimmed, stage.late = log == "trimmed", late
        stage.forgotten = ("input_required",) if log == "without questions" else ()
        for _ in range(2):
            window.page.reload()
            window.expect_connected()
            expect(window.page.locator('.input[data-status="open"]')).to_have_count(2)
        expect(window.page.locator(".input")).to_have_count(3 if log == "whole" else 2)
        expect(window.page.locator(".sub-run .input")).to_have_count(1)
        if log != "trimmed":
            places = "[...document.querySelector('.run-body').children].map((child) => child.dataset.testid)"
            assert window.run(places)[:3] == ["thinking", "sub-run", "input"]
        window.page.get_by_role("button", name="yes").click()
        window.page.get_by_role("button", name="b", exact=True).click()
        expect(window.page.locator('.input[data-status="open"]')).to_have_count(0)
        assert {said["input_id"]: said["value"] for said in stage.said} == {"i1": "yes", "i2": "b"}


def test_focus_goes_to_a_question_only_from_idle_hands(browser: Browser, server: ServerProcess) -> None:
    """A new question gets the focus where nobody types; who writes goes on writing; after the answer one writes on."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Publish this?", choices=CHOICES)
        expect(window.page.locator(".input")).to_be_focused()  # the question, no button that Enter would press
        window.page.keyboard.press("Enter")
        window.page.keyboard.press("Tab")
        window.page.keyboard.press("Enter")
        expect(window.get("input-answer")).to_have_text("You answered:yes")
        expect(window.get("composer")).to_be_focused()
        window.get("composer").type("I am wri")
        stage.ask("i2", "And this?")
        expect(window.get("input")).to_have_count(2)
        window.get("composer").type("ting")
        expect(window.get("composer")).to_have_value("I am writing")
        assert window.run(FOCUSED) == "composer"
        window.get("composer").fill("")
        stage.ask("i3", "Its name?")
        expect(window.get("input-text").last).to_be_focused()
        stage.ask("i4", "Its size?")
        window.page.keyboard.type("Ada")
        expect(window.get("input-text").nth(1)).to_have_value("Ada")
        window.page.keyboard.press("Escape")  # leaves the question and stops nothing
        expect(window.get("composer")).to_be_focused()
        expect(window.get("run-status")).to_have_attribute("data-status", "asking")


def test_other_conversations_that_wait_are_marked(browser: Browser, server: ServerProcess) -> None:
    """The list marks a conversation in which an agent waits for an answer, and the window's title counts them."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "Publish this?", choices=CHOICES, thread_id="t2", run_id="r2")
        waiting = window.get("thread").filter(has=window.get("thread-asks"))
        expect(waiting).to_have_count(1)
        expect(waiting).to_have_attribute("data-thread-id", "t2")
        expect(waiting.get_by_role("img", name="waits for your answer")).to_be_visible()
        expect(window.page).to_have_title(re.compile(r"^\(1\) "))
        expect(window.page.locator("#announcer")).to_contain_text("planner asks in the conversation")
        window.page.reload()
        window.expect_connected()
        waiting.click()
        window.get("choice").first.click()
        expect(waiting).to_have_count(0)
        expect(window.page).to_have_title(re.compile(r"^(?!\()"))


def test_sub_runs_stand_below_their_tool_calls(browser: Browser, server: ServerProcess) -> None:
    """Sub-runs are nested below the call or the run that started them, with name, status and duration, and fold."""
    with staged(browser, server) as (stage, window):
        stage.event("tool_executing", tool_call_id="c1", tool_name="survey", parameters={}, status="executing")
        stage.event("tool_progress", tool_call_id="c1", progress=0.4, message="2 of 5")
        expect(window.get("tool")).to_contain_text("running · 40%")
        first = stage.sub_run("s1", "researcher", parent_tool_call_id="c1")
        second = stage.sub_run("s2", "pricing", parent_tool_call_id="c1")
        third = stage.sub_run("s3", "reader", parent="s1")
        stage.event("agent_message", message_id="a", phase="full", content="deep words", **third)
        stage.event("agent_message", message_id="b", phase="delta", content="some price", **second)
        parts = window.get("sub-run")
        expect(parts).to_have_count(3)
        expect(window.page.locator(".tool + .sub-runs > .sub-run")).to_have_count(2)
        inner = window.page.locator(".sub-run .sub-run")
        expect(inner).to_contain_text("deep words")
        expect(inner.get_by_test_id("run-status")).to_have_attribute("data-status", "running")
        stage.end(**third)
        stage.end("error", error={"code": "E", "message": "no idea", "retryable": False}, **second)
        expect(inner).not_to_have_attribute("open", "")
        expect(inner).to_contain_text("Done · 1.5 s")
        expect(inner.locator(".sub-run-brief")).to_have_text("deep words")
        failed = parts.filter(has_text="pricing")
        expect(failed).to_have_attribute("open", "")
        expect(failed).to_contain_text("Failed · 1.5 s")
        inner.locator("summary").click()
        expect(inner.get_by_test_id("message-assistant")).to_be_visible()
        stage.end(**first)
        expect(window.get("run-status").last).to_have_attribute("data-status", "running")  # that of the whole run
        expect(window.get("stop")).to_have_count(1)
        stage.event(
            "tool_completed", tool_call_id="c1", tool_name="survey", status="ok", success=True, results=1, duration_ms=5
        )
        stage.end(response="done")
        expect(window.page.locator(f'.run[data-run-id="{RUN}"] > .run-status')).to_have_attribute(
            "data-status", "success"
        )


def test_question_of_a_folded_sub_run_is_seen(browser: Browser, server: ServerProcess) -> None:
    """A question unfolds what it stands in."""
    with staged(browser, server) as (stage, window):
        names = stage.sub_run("s1", "pricing")
        window.get("sub-run").locator("summary").click()
        expect(window.get("sub-run")).not_to_have_attribute("open", "")
        stage.ask("i1", "Which carrier?", choices=["a", "b"], **names)
        expect(window.get("choice").first).to_be_visible()
        expect(window.get("sub-run").get_by_test_id("run-status")).to_have_text("Waits for your answer")
        expect(window.page.locator("#announcer")).to_have_text("pricing asks: Which carrier?")


def test_markup_of_questions_stays_text(browser: Browser, server: ServerProcess) -> None:
    """Markup in a question, its choices, its schema, a refusal, an answer or an agent's name stays text."""
    schema = {
        "type": "object",
        "description": MARKUP,
        "properties": {
            MARKUP: {"type": "string", "title": MARKUP, "description": MARKUP, "default": MARKUP},
            "e": {"enum": [MARKUP]},
            "s": {"type": "array", "items": {"enum": [MARKUP]}},
            "c": {"const": MARKUP},
        },
    }
    with staged(browser, server) as (stage, window):
        count = "document.querySelectorAll('body img, body script, body b, #conversation a').length"
        before = window.run(count)
        stage.judge = lambda command: {
            "code": "INVALID_MESSAGE",
            "error": MARKUP,
            "details": {"fields": {"$.value.e": MARKUP}},
        }
        names = stage.sub_run("s1", MARKUP)
        stage.ask("i1", MARKUP, choices=[MARKUP], **names)
        stage.settle("i1", "resolved", MARKUP)
        stage.ask("i2", MARKUP, schema=schema)
        _answer(window)
        expect(window.get("form")).to_contain_text(MARKUP)
        stage.settle("i2", "resolved", {MARKUP: MARKUP, "s": [MARKUP]})
        expect(window.get("input-answer").last).to_contain_text(MARKUP)
        assert window.run(count) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(", "format": 5, "maxLength": "many"},
        {"type": "object", "properties": {"a": None, "b": True, "c": [], "d": {"type": ["x"]}, "e": {"enum": []}}},
        {"type": "array", "items": True},
        {"$ref": "#"},
        {"allOf": [{"allOf": [None]}]},
        {"anyOf": [{"type": "null"}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": 5},
    ],
)
def test_odd_schemas_can_be_answered(browser: Browser, server: ServerProcess, schema: dict[str, Any]) -> None:
    """A schema that is wrong or strange breaks no page: there is some form, and the question can be declined."""
    with staged(browser, server) as (stage, window):
        stage.ask("i1", "What?", schema=schema)
        expect(window.get("form")).to_be_visible()
        _answer(window)
        if window.get("decline").count():
            window.get("decline").click()
        expect(window.get("input-answer")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_questions_are_readable_in_both_schemes(browser: Browser, server: ServerProcess, scheme: str) -> None:
    """Every text of questions, forms, faults and sub-runs has a contrast of at least 4.5 (WCAG 2.1 AA)."""
    from .test_console import _FAINT_TEXTS

    with staged(browser, server, color_scheme=scheme) as (stage, window):
        names = stage.sub_run("s1", "pricing")
        stage.ask("i0", "Over?", choices=CHOICES, **names)
        stage.settle("i0", "resolved", "yes")
        stage.end(response="words", **names)
        stage.ask("i1", "Publish this?", choices=CHOICES, expires_at=time.time() + 30)
        stage.ask("i2", "Where shall it go?", schema=DELIVERY, expires_at=time.time() + 3600)
        _answer(window)
        expect(window.get("field-fault").first).to_be_visible()
        assert window.run(_FAINT_TEXTS) == []


def test_form_fits_a_narrow_window(browser: Browser, server: ServerProcess) -> None:
    """On a phone's screen a form with nested fields is not cut off sideways."""
    with open_window(browser, server, viewport={"width": 360, "height": 640}) as window:
        stage = Stage()
        stage.attach(window.page)
        stage.begin()
        window.sign_in("ada")
        window.page.get_by_role("button", name="Show the conversations").click()
        window.get("thread").click()
        names = stage.sub_run("s1", "W" * 60)
        stage.ask("i1", "Where shall it go?", schema=DELIVERY, **names)
        stage.ask("i2", "W" * 200, choices=["W" * 200, "no"], **names)
        expect(window.get("choice").first).to_be_visible()
        assert window.run("(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(scroller)") == 0


def test_what_is_far_up_costs_no_layout(browser: Browser, server: ServerProcess) -> None:
    """Of a long conversation only what is near is laid out; its end is followed, its start there on the way up."""
    with staged(browser, server) as (stage, window):
        for number in range(80):
            names = {"run_id": f"x{number}"}
            question = {"message_id": f"u{number}", "content": f"question {number}", "disposition": "started"}
            stage.event("user_message", **question, **names)
            stage.event("agent_started", message_id=f"u{number}", trigger="message", **names)
            stage.event("agent_message", message_id=f"a{number}", phase="full", content="word " * 60, **names)
            stage.end(**names)
        expect(window.get("message-user").last).to_be_in_viewport()
        first = "document.querySelector('.bubble').checkVisibility({ contentVisibilityAuto: true })"
        assert window.run(first) is False
        window.run("scroller.scrollTop = 0")
        window.until(first)
        expect(window.get("message-user").first).to_be_in_viewport()
