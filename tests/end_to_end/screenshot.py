"""Takes the picture of the console for the README: ``python -m tests.end_to_end.screenshot [file.png]``.

A real conversation with a real server; run it again when the console looks different.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from .needs import find_chromium
from .serving import ROOT, running_server
from .window import Window, launched, open_window

PICTURE = ROOT / "examples" / "browser" / "console.png"
# A little larger than the picture, so that a whole conversation fits.
SCALE = 0.8
VIEW = {"width": 1600, "height": 1000}
EARLIER = [
    "What is 12 * 85, for invoice 2231?",
    "What time is it in Sao Paulo?",
    "Invoice 2231 with VAT: 1,020 + 19% = ?",
]
USAGE = [
    {"timestamp": f"2026-03-0{day}T10:00:00Z", "model": model, "input_tokens": 1200 * day, "output_tokens": 310 * day}
    for day in (1, 2, 3)
    for model in ("large", "small")
]


def main(picture: Path) -> None:
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium was found; name one in NETRA_WS_TEST_CHROMIUM")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder)) as server,
        launched(chromium) as browser,
        open_window(browser, server, viewport=VIEW, device_scale_factor=SCALE, color_scheme="light") as window,
    ):
        window.sign_in("ada")
        converse(window)
        picture.write_bytes(window.page.screenshot(animations="disabled"))


def converse(window: Window) -> None:
    """Fill the list of conversations, then hold the one that is shown."""
    for question in EARLIER:
        window.ask(question, agent="assistant")
        window.get("new-thread").click()
    log = "\n".join(map(json.dumps, USAGE)).encode()
    file = {"name": "march.jsonl", "mimeType": "application/jsonl", "buffer": log}
    window.page.locator("#attach-file").set_input_files(file)
    window.ask("How much did we use in March?")
    window.get("new-thread").click()
    window.say("we are open on Sundays", agent="publishing")
    expect(window.get("input")).to_be_visible()
    window.page.locator(".input select").select_option(label="newsletter")
    window.page.locator(".input input[type=text]").first.fill("Open on Sundays")
    window.get("composer").focus()
    window.page.mouse.move(0, 0)
    window.page.evaluate("scroller.scrollTop = scroller.scrollHeight")
    expect(window.page.locator(".notice")).to_have_count(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
