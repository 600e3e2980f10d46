"""The page in a real browser: by keyboard, light and dark, under its own strict policy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remamba.serve.page import page
from tests.serve.conftest import Running, serving
from tests.tiny import TEXT

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NASTY = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>\n🙂 "
DOCUMENT = NASTY + TEXT * 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def tab(browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened; nothing may go wrong on it, and nothing be asked of others."""
    yield from opened(browser, server)


def opened(browser: Any, server: Running, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**options)
    tab, wrong, asked = context.new_page(), [], []
    tab.set_default_timeout(15_000)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(server.url)
    yield tab
    # a browser notes every request that was refused, which the page tells in its own words
    assert not [one for one in wrong if "Failed to load resource" not in one], wrong
    assert all(url.startswith((server.url, "data:")) for url in asked)
    context.close()


def shows(tab: Any, place: str, words: Any) -> None:
    from playwright.sync_api import expect

    expect(tab.locator(place)).to_contain_text(words, timeout=15_000)


def give(tab: Any, path: Path, text: str = DOCUMENT) -> None:
    path.write_text(text, encoding="utf-8")
    tab.set_input_files("#file", path)
    shows(tab, "#about", "read once")


def ask(tab: Any, question: str = "Who lives in Lisbon?") -> None:
    tab.fill("#question", question)
    tab.press("#question", "Enter")
    shows(tab, "#legend", re.compile("."))


def test_a_document_is_asked_and_painted(tab: Any, server: Running, tmp_path: Path) -> None:
    give(tab, tmp_path / "a.txt")
    assert tab.text_content("#document") == DOCUMENT
    ask(tab)
    with server.client() as client:
        found = {}
        (file,) = client.files.list()
        for model in ("tiny", "tiny:plain"):
            parts = [
                {"type": "file", "file": {"file_id": file.id}},
                {"type": "text", "text": "Who lives in Lisbon?"},
            ]
            found[model] = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": parts}], max_tokens=256,
                extra_body={"remamba_kept": True},
            )  # type: ignore  # fmt: skip
    assert tab.locator("#answers h2").all_text_contents() == list(found)
    assert tab.locator("#answers .text").all_text_contents() == [
        done.choices[0].message.content for done in found.values()
    ]
    kept = found["tiny"].remamba["answers"][0]["kept"]
    assert kept and any(word["start"] > DOCUMENT.index("🙂") for word in kept)
    assert tab.locator("#document mark").all_text_contents() == [word["text"] for word in kept]
    assert tab.text_content("#document") == DOCUMENT
    stages = tab.locator("#answers section").first.locator("dt").all_text_contents()
    assert {"first word", "stage 1", "stage 2", "answer written", "in all"} <= {*stages}
    assert "tokens were read before" in (tab.text_content("#answers dd") or "")
    # what the document holds is shown and never run
    assert tab.title() == "remamba" and tab.locator("#document img, #document script").count() == 0


def test_the_part_that_was_read_is_painted(tab: Any, tmp_path: Path) -> None:
    give(tab, tmp_path / "a.txt", TEXT * 40)
    tab.select_option("#method", "tiny:bm25")
    ask(tab)
    marks = tab.locator("#document mark").all_text_contents()
    assert marks and len("".join(marks)) <= len(TEXT * 40)
    assert tab.text_content("#document") == TEXT * 40


def test_by_keyboard_alone(tab: Any) -> None:
    """Every control is reached by Tab, in the order of the page; Escape stops an answer."""
    order = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id"))
        if order[-1] == "paste":
            tab.keyboard.insert_text(TEXT * 2)
        if order[-1] == "take":
            tab.keyboard.press("Enter")
            tab.wait_for_selector("#go:enabled")
        if order[-1] == "question":
            tab.keyboard.insert_text("Who?")
    assert [name for name in order if name] == [
        "file", "paste", "take", "question", "method", "plain", "go", "document"
    ]  # fmt: skip
    tab.focus("#go")
    tab.keyboard.press("Enter")
    shows(tab, "#answers section:first-child .text", re.compile("."))
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#stop:disabled")


def test_errors_are_told(tab: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b" ")
    tab.set_input_files("#file", tmp_path / "empty")
    shows(tab, "#about", "is empty")
    assert tab.locator("#go").is_disabled()


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with serving(api_key=("secret-key",)) as server:
        for tab in opened(browser, server):
            tab.fill("#key", "secret-key")
            tab.press("#key", "Enter")
            shows(tab, "#state", "ready")
            assert tab.locator("#entry").is_hidden()
            give(tab, tmp_path / "a.txt")
            ask(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(
    browser: Any, server: Running, tmp_path: Path, scheme: Any
) -> None:
    """Words stand out from what is behind them by 4.5 to 1 at least (WCAG 2.2, 1.4.3)."""
    for tab in opened(browser, server, color_scheme=scheme):
        give(tab, tmp_path / "a.txt")
        ask(tab)
        assert tab.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const part = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return a ? 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) : null;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const found = light(getComputedStyle(node).backgroundColor);
      if (found !== null) return found;
    }
    return 1;
  };
  const wrong = [];
  for (const node of document.querySelectorAll('body *')) {
    if (!node.textContent.trim() || node.disabled) continue;
    if (node.closest('[hidden], script, style')) continue;
    const [high, low] = [light(getComputedStyle(node).color), behind(node)].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5) wrong.push(`${node.tagName}.${node.className}`);
  }
  return [...new Set(wrong)];
}"""


def test_the_policy_is_strict() -> None:
    text, headers = page()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text
    assert not re.search(r"<[^>]+\son\w+=|<[^>]+\sstyle=", text)
    assert "http://" not in text and "https://" not in text
