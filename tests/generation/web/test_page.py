"""The page, in a real browser that reaches nothing but its server."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = api.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("Chromium is not installed (Debian: apt install chromium)", allow_module_level=True)
TEXT = "w1 [MASK] w2 [MASK] w3 [MASK] w4"
SLOW = "[MASK] w1 " * 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server) -> Iterator[Any]:
    """Return what opens the page; at the end nothing else was asked for, and the browser had nothing to complain of."""
    faults, contexts = [], []

    def only_ours(route) -> None:
        if route.request.url.startswith(f"{server.url}/"):
            route.continue_()
        else:
            faults.append(route.request.url)
            route.abort()

    def opened(*, locale: str = "en-GB", **options):
        context = browser.new_context(locale=locale, **options)
        contexts.append(context)
        context.route("**/*", only_ours)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda one: "status of 400" in one.text or faults.append(one.text))  # what we refuse
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        expect(page.locator("#model")).to_contain_text("words")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults
    server.wait_until_idle()


def settings_of(page, **values: Any) -> None:
    page.locator("#settings").evaluate("element => element.open = true")
    page.select_option("#way", values.pop("way"))
    for name, value in values.items():
        page.fill(f"#{name}", str(value))


def fill(page, text: str, *, blanks: int) -> None:
    page.fill("#text", text)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text(f"{blanks} blank")


def shown(page) -> list[str]:
    return page.locator(".blank").all_inner_texts()


def test_a_selection_becomes_a_blank_and_is_filled_with_the_keyboard_alone(open_page, server):
    page = open_page()
    page.locator("#out_seq_length").evaluate("element => element.value = 6")
    page.keyboard.press("Tab")  # the language
    for _ in range(4):
        page.keyboard.press("Tab")  # three kinds of blanks, then the text: nothing is there to undo
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("w1 w2 w3")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")  # "w2 "
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="A sentence")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_have_value("w1 [sMASK] w3")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("1 blank filled")
    answer = server.fill("w1 [sMASK] w3", num_beams=4, out_seq_length=6, no_repeat_ngram_size=3)
    expect(page.locator("#filled")).to_have_text(answer["text"])
    page.keyboard.press("Tab")
    expect(page.locator(".blank")).to_be_focused()
    page.keyboard.press("Enter")  # to its candidates
    expect(page.get_by_role("radio").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    second = answer["blanks"][0]["candidates"][1]["text"]
    expect(page.locator("#filled")).to_have_text(f"w1 {second} w3")
    expect(page.get_by_role("radio").nth(1)).to_be_focused()
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator("#filled")).to_have_text(answer["text"])
    page.get_by_role("button", name="Edit text").press("Enter")
    expect(page.locator("#text")).to_be_focused()
    while page.locator("#undo").is_enabled():
        page.locator("#undo").press("Enter")
    expect(page.locator("#text")).to_have_value("w1 w2 w3")


def test_what_a_screen_reader_is_told(open_page):
    page = open_page()
    settings_of(page, way="samples", out_seq_length=3)
    fill(page, TEXT, blanks=3)
    told = page.locator("body").aria_snapshot()
    for part in (
        'heading "Fill blanks" [level=1]', 'group "Make the selection a blank:"', 'button "Fill"', "- status:", "radio",
        'heading "Blank 1 of 3 [MASK]" [level=2]', 'group "Candidates"', 'group "Text with the answers in place"',
        'spinbutton "Temperature"', 'combobox "How to decode"',
    ):  # fmt: skip
        assert part in told, told
    names = re.findall(r'button "(Blank \d: .*?, probability [^"]*)"', told)
    assert len(names) == 3
    for element in page.locator("button, input, select, textarea, [role=button]").all():
        if element.is_visible():
            assert re.search(r'"[^"]+"', element.aria_snapshot()), element.evaluate("one => one.outerHTML")


def test_choices_refill_what_comes_later(open_page, server):
    page = open_page()
    settings_of(page, way="beams", out_seq_length=5)
    fill(page, TEXT, blanks=3)
    whole = server.fill(TEXT, num_beams=4, out_seq_length=5, no_repeat_ngram_size=3)
    page.locator(".blank").nth(1).click()
    expect(page.locator("#blank-title")).to_have_text("Blank 2 of 3 [MASK]")
    choice = whole["blanks"][1]["candidates"][2]
    page.get_by_role("radio").nth(2).check()
    expect(page.get_by_role("status")).to_contain_text("1 blank filled")
    given = [whole["blanks"][0]["candidates"][0]["ids"], choice["ids"]]
    options = {"num_beams": 4, "out_seq_length": 5, "no_repeat_ngram_size": 3}
    later = server.fill(TEXT, given=given, **options)
    expect(page.locator("#filled")).to_have_text(later["text"])
    page.locator("#results").evaluate("element => element.open = true")
    assert shlex.split(page.inner_text("#command"))[:3] == ["python", "generate_samples.py", "--load-pretrained"]
    expect(page.locator("#by-hand")).to_be_visible()

    page.locator(".blank").nth(0).click()
    page.locator(".token").nth(1).click()
    first = whole["blanks"][0]["candidates"][0]["tokens"]
    other = next(one for one in first[1]["alternatives"] if one["id"] != first[1]["id"] and one["text"])
    expect(page.locator("#alternatives li")).to_have_count(5)
    page.locator(f'[data-key="alternative-{other["id"]}"]').click()
    expect(page.get_by_role("status")).to_contain_text("3 blanks filled")
    prefix = [first[0]["id"], other["id"]]
    expect(page.locator("#filled")).to_have_text(server.fill(TEXT, prefix=prefix, **options)["text"])
    assert page.locator(".token").all_inner_texts()[1].startswith(other["text"])
    for _ in range(2):
        page.click("#undo")
    expect(page.locator("#filled")).to_have_text(whole["text"])


def test_answers_appear_while_they_are_written_and_stop(open_page, server):
    page = open_page()
    settings_of(page, way="samples", out_seq_length=64, min_tgt_length=60)
    page.fill("#text", SLOW)
    page.click("#fill")
    expect(page.locator(".blank.writing")).to_have_count(1)
    expect(page.locator(".blank").first).to_contain_text(re.compile(r"w\d+ w\d+"))
    expect(page.locator(".blank").last).to_have_text("[MASK]")
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    server.wait_until_idle()
    expect(page.locator(".blank").last).to_have_text("[MASK]")
    expect(page.locator(".blank.writing")).to_have_count(0)
    page.click("#fill")
    expect(page.locator(".blank.writing")).to_have_count(1)
    page.close()
    server.wait_until_idle()  # a page that is closed asks for nothing more


def test_copies(open_page, server):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    settings_of(page, way="greedy", out_seq_length=4)
    fill(page, TEXT, blanks=3)
    answer = server.fill(TEXT, top_k=1, out_seq_length=4, no_repeat_ngram_size=3)
    page.locator("#results").evaluate("element => element.open = true")
    copied = {}
    for name in ("text", "json", "command"):
        page.click(f"#copy-{name}")
        expect(page.get_by_role("status")).to_have_text("Copied.")
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    assert copied["text"] == answer["text"]
    assert copied["command"] == answer["command"] == page.inner_text("#command")
    written = json.loads(copied["json"])
    assert (written["prompt"], written["text"]) == (TEXT, answer["text"])
    for blank, told in zip(written["blanks"], answer["blanks"]):
        assert blank["candidates"] == told["candidates"] and blank["mask"] == told["mask"]
    page.click("#keep")
    expect(page.locator("#text")).to_have_value(answer["text"])


def test_a_small_chinese_screen(open_page):
    page = open_page(locale="zh-CN", color_scheme="light", viewport={"width": 360, "height": 640})
    assert page.get_attribute("html", "lang") == "zh-CN"
    expect(page.get_by_role("heading", level=1)).to_have_text("填空")
    page.locator("#results").evaluate("element => element.open = true")
    settings_of(page, way="beams", out_seq_length=4)
    page.fill("#text", TEXT)
    page.get_by_role("button", name="填空").click()
    expect(page.get_by_role("status")).to_contain_text("已填 3 个空白")
    page.locator(".token").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    texts = page.locator("body").inner_text()
    assert not re.search("Undo|Settings|Candidates|undefined|null", texts)
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        style = page.evaluate("(one => [one.color, one.backgroundColor])(getComputedStyle(document.body))")
        colours.append([sum(map(int, re.findall(r"\d+", colour))) for colour in style])
    assert colours[0][0] < colours[0][1] and colours[1][0] > colours[1][1]
    page.get_by_role("button", name="English").click()
    assert page.get_attribute("html", "lang") == "en"
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Fill blanks")  # it is remembered


def test_faults_are_told(open_page):
    page = open_page()
    page.fill("#text", "w1 " * 70 + "[MASK]")
    page.click("#fill")
    expect(page.get_by_role("alert")).to_contain_text("shorten the prompt")
    expect(page.locator("#text")).to_be_visible()
    settings_of(page, way="greedy", out_seq_length=2)
    page.fill("#text", "w1 [mask] [MASK]")
    page.click("#fill")
    expect(page.get_by_role("alert")).to_have_text("[mask] is text and no blank to this model.")
