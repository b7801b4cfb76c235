"""Both pages in a real browser: silent, readable on a phone and on a desk, light and dark, without script, accessible.

They need the extra naysay[browser] and an installed Chromium (`make browser`), and are skipped where one is missing.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig
from naysay.config.objectives import OBJECTIVES
from naysay.records import Generation, Negative
from naysay.reporting import stage
from naysay.reporting.comparison import Subject, assemble, render
from reporting.test_comparison_page import CHOICES, HISTORIES, RUNS, SETTINGS

MISSING = "the extra naysay[browser] is not installed; `make browser` installs it"
playwright_api = pytest.importorskip("playwright.sync_api", reason=MISSING)
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason=MISSING)

from scripts.screenshot import find_chromium, launch  # noqa: E402  (it imports playwright)

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium (apt-get install chromium)"
)
PHONE, DESK = 390, 1280
LIGHT, DARK = "light", "dark"
# What makes a page wider than its screen: a word that does not end, a line that does not, another direction.
AWKWARD = "https://example.org/" + "very-long-" * 40 + "\n\n    def f(x): return " + "x + " * 60 + "\n\nمرحبا بالعالم"
MADE_OF = {"report": "The tuned answer to benign 3.", "comparison": "What each was given"}

OPEN_ALL = "document.querySelectorAll('details').forEach(details => { details.open = true })"
# Colours as the browser computed them, of what a drawing shows and of the card that it lies on.
DRAWN = """() => {
  const series = /var\\(--(series|objective)-/;
  return [...document.querySelectorAll('figure')].map(figure => ({
    background: getComputedStyle(figure).backgroundColor,
    letters: [...figure.querySelectorAll('text')].map(text => getComputedStyle(text).fill),
    shapes: [...figure.querySelectorAll('path')].flatMap(path => ['stroke', 'fill']
      .filter(paint => series.test(path.style[paint])).map(paint => getComputedStyle(path)[paint])),
  }))
}"""
# Text of its own that an element shows, in CSS pixels on the screen: drawings are scaled to their card.
SMALLEST_LETTERS = """() => Math.min(...[...document.body.querySelectorAll('*')]
  .filter(e => e.checkVisibility() && [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(e => {
    const place = e.ownerSVGElement ? e.getScreenCTM() : {a: 1, b: 0};
    return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(place.a, place.b)
  }))"""
OUTSIDE_THEIR_CARD = """[...document.querySelectorAll('figure')].flatMap(figure => {
  const card = figure.getBoundingClientRect();
  return [...figure.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < card.left || box.right > card.right || box.top < card.top || box.bottom > card.bottom
  }).map(text => text.textContent)
})"""


@cache
def comparison() -> str:
    model = SETTINGS["model"] | {"name": AWKWARD}
    subject = Subject(SETTINGS | {"model": model}, "d2o", f"naysay compare {AWKWARD}", "0.1.0")
    # Drawings take their names from the histories: those that need most room.
    names = sorted(OBJECTIVES, key=len)[-4:]
    return render(assemble(subject, CHOICES, RUNS), dict.fromkeys(names, HISTORIES["npo"]))


@pytest.fixture(params=list(MADE_OF))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(
    name: str,
    make_run: Callable[..., RunDirectory],
    make_generation: Callable[..., Generation],
    judged_evaluation: dict[str, Any],
    tmp_path: Path,
) -> str:
    """The address of a page that is made up, with names and answers that are hard to lay out."""
    path = tmp_path / "compare.html"
    if name == "comparison":
        path.write_text(comparison(), encoding="utf-8")
        return path.as_uri()
    config = RunConfig().model_copy(update={"model": RunConfig().model.model_copy(update={"name": AWKWARD})})
    answers = [
        make_generation(kind, index, model, text, prompt=text, outcome=outcome, finish="length")
        for model in ("base", "tuned")
        for kind in ("heldout", "benign", "lookalike")
        for index, (text, outcome) in enumerate(((AWKWARD, "degenerate"), ("No.", "refusal"), ("Yes.", "answer")))
    ]
    answers += [make_generation("benign", 3, model) for model in ("base", "tuned")]
    negatives = [
        Negative(f"n-{index}", f"p-heldout-{index}", "No.", category=("insult", "privacy violation", AWKWARD)[index])
        for index in range(3)
    ]
    run = make_run(judged_evaluation, answers=answers, config=f"data: {AWKWARD!r}\n", negatives=negatives)
    stage.run(config, run)
    return run.report.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright, launch(playwright, CHROMIUM) as launched:
        yield launched


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """`open_page(width, scheme, script)` opens the page of this test, with everything that is folded unfolded."""
    contexts = []

    def opened(width: int = DESK, scheme: str = LIGHT, script: bool = True) -> Any:
        viewport = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=script))
        page = contexts[-1].new_page()
        page.goto(url)
        page.evaluate(OPEN_ALL)
        return page

    yield opened
    for context in contexts:
        context.close()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21.0)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.005)


def test_it_says_nothing_in_the_console_and_loads_nothing(browser: Any, url: str) -> None:
    heard, requested = [], []
    page = browser.new_page()
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    page.evaluate(OPEN_ALL)
    page.close()
    assert heard == []
    assert requested == [url]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_the_screen_and_its_letters_can_be_read(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(width)
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.evaluate(SMALLEST_LETTERS) >= 11.0
    assert page.evaluate(OUTSIDE_THEIR_CARD) == []


PUSHED = """[...document.querySelectorAll('.table')].filter(table => table.scrollWidth > table.clientWidth)
  .map(table => table.ariaLabel)"""


def test_no_table_has_to_be_pushed_sideways_on_a_phone(open_page: Callable[..., Any]) -> None:
    assert open_page(PHONE).evaluate(PUSHED) == []


@pytest.mark.parametrize("name", ["report"])
def test_nor_in_a_report_on_a_desk(open_page: Callable[..., Any], name: str) -> None:
    assert open_page(DESK).evaluate(PUSHED) == []


def test_without_script_it_shows_the_same_text(
    open_page: Callable[..., Any], browser: Any, url: str, name: str
) -> None:
    without, with_script = open_page(script=False), open_page()
    text = without.inner_text("body")
    assert MADE_OF[name] in text
    assert text == with_script.inner_text("body")
    without.reload()  # folds it again
    folded = without.locator("details:not([open])").first
    assert not folded.locator(":scope > :not(summary)").first.is_visible()
    folded.locator("summary").click()
    assert without.locator("details[open] > :not(summary)").first.is_visible()


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_drawings_stand_out_from_their_card(open_page: Callable[..., Any], scheme: str) -> None:
    page = open_page(scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(background) < 0.05 if scheme == DARK else luminance(background) > 0.9
    figures = page.evaluate(DRAWN)
    assert figures
    for figure in figures:
        # WCAG 2.2, 1.4.3 and 1.4.11: text 4.5 to 1, lines and bars 3 to 1.
        assert min(contrast(colour, figure["background"]) for colour in figure["letters"]) >= 4.5
        assert min(contrast(colour, figure["background"]) for colour in figure["shapes"]) >= 3.0


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_axe_finds_no_violation(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    found = axe_api.Axe().run(open_page(width, scheme))
    assert found.violations_count == 0, found.generate_report()


def test_axe_would_find_faint_text(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.add_style_tag(content="p { color: #ddd !important }")
    assert "color-contrast" in [item["id"] for item in axe_api.Axe().run(page).response["violations"]]
