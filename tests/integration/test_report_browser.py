"""The report and the live page in a browser, the report on paper too: whole, without an error, and by keyboard."""

import os
import re
import shutil
import signal
import time

import pytest
from launching import DEADLINE_S, finish, start
from simulated_sweep import SMALL_GRID, write_sweep

from memrl.analysis.page import write_report

pytestmark = pytest.mark.browser

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FIGURES = ("rate", "ledger", "learning", "episodes", "agents", "maps")
BROKEN_IN_TRIALS = """import sys

def pay(guess, secret, N):
    if "default_worker" in sys.argv[0]:
        raise RuntimeError("no <b>reward</b>")
    return (guess == secret).astype(float)
"""
MOST_TAB_STOPS = 40
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(str(folder), **SMALL_GRID)
    return write_report(str(folder), grid="tiny", num_planned=500).as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the report, and fails on anything that the console or the network complains of."""
    complaints, pages = [], []

    def open_report(**options):
        page = browser.new_page(**({"viewport": {"width": 1200, "height": 900}} | options))
        page.set_default_timeout(PATIENCE_MS)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(address)
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()
    assert complaints == []


def shown_drawings(page):
    """Stem and width of every drawing that takes room on the page, and how far it reaches to the right."""
    return page.eval_on_selector_all(
        ".drawing > div",
        "all => all.filter(e => e.checkVisibility())"
        ".map(e => [e.parentElement.dataset.stem, e.className, e.querySelector('svg').getBoundingClientRect().right])",
    )


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({"viewport": {"width": 400, "height": 800}}, "column"),
        ({"viewport": {"width": 800, "height": 800}}, "page"),
        ({"viewport": {"width": 1400, "height": 800}}, "page"),
        ({"color_scheme": "dark"}, "page"),
        ({"forced_colors": "active"}, "page"),
    ],
)
def test_every_figure_is_shown_whole_in_one_width(open_page, options, width):
    page = open_page(**options)
    shown = shown_drawings(page)
    assert [stem for stem, _, _ in shown] == ["rate", "ledger-N64", "learning-N64", "episodes"]
    assert {name for _, name, _ in shown} == {width}
    full, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert full <= window
    assert all(right <= window for _, _, right in shown)
    page.eval_on_selector_all("details", "all => all.forEach(e => { e.open = true; })")
    assert {stem.partition("-")[0] for stem, _, _ in shown_drawings(page)} == set(FIGURES)
    assert page.evaluate("document.documentElement.scrollWidth") <= window
    words = page.eval_on_selector_all(
        f".drawing .{width} svg text",
        "all => all.filter(e => e.checkVisibility()).map(e => [e.textContent, e.getBoundingClientRect(),"
        " e.closest('svg').getBoundingClientRect()]).filter(([, word, svg]) =>"
        " word.left < svg.left - 2 || word.right > svg.right + 2).map(([text]) => text)",
    )
    assert words == []


def test_paper_keeps_every_channel_in_light_colors(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert {name for _, name, _ in shown_drawings(page)} == {"page"}
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(17, 17, 17)"
    assert page.eval_on_selector(".drawing svg", "svg => getComputedStyle(svg).filter") == "none"
    page.set_viewport_size({"width": 680, "height": 900})  # A4 less its margins
    for stem in ("rate", "ledger-N64"):
        texts = page.eval_on_selector_all(
            f".drawing[data-stem={stem}] .page svg text",
            "all => all.map(e => [e.textContent, e.getBoundingClientRect().left, e.getBoundingClientRect().right])",
        )
        assert {"SFT", "per bit", "distance, 8 log bins", "binary"} <= {text for text, _, _ in texts}
        assert [text for text in texts if text[1] < 0 or text[2] > 680] == []


def test_a_reader_with_a_keyboard_gets_through(open_page):
    page = open_page()
    stops = []
    while len(stops) <= MOST_TAB_STOPS:
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        stops.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert stops[0] == "Skip to the answer"
    assert len(stops) <= MOST_TAB_STOPS
    page.locator("summary", has_text="Every setting").focus()
    page.keyboard.press("Enter")
    assert page.locator("#filter-text").is_visible()


def test_a_link_opens_what_is_folded(open_page):
    page = open_page()
    assert not page.locator("#settings").is_visible()
    page.evaluate("location.hash = '#settings'")
    page.locator("#settings").wait_for(state="visible")


def test_marks_tell_their_numbers_and_drawings_can_be_saved(open_page):
    page = open_page()
    titles = page.eval_on_selector_all(".drawing[data-stem=rate] .page title", "all => all.map(e => e.textContent)")
    assert any(title.startswith("binary, N = 64: ") for title in titles)
    page.locator("#answer summary", has_text="Numbers and files").click()
    with page.expect_download() as started:
        page.get_by_role("button", name="rate.svg").click()
    assert started.value.suggested_filename == "rate.svg"


def table_column(page, index):
    return page.eval_on_selector_all("#settings tbody tr", f"rows => rows.map(r => r.cells[{index}].textContent)")


def test_filter_sort_and_paging_of_the_table(open_page):
    page = open_page()
    page.locator("summary", has_text="Every setting").click()
    heads = [text.rstrip(" ↕↑↓") for text in page.locator("#settings thead th").all_inner_texts()]
    status = page.locator("#settings-status")
    total = int(status.inner_text().split(" of ")[1].split()[0])
    assert page.locator("#settings tbody tr").count() == min(50, total)
    page.locator("#settings-more").click()
    assert page.locator("#settings tbody tr").count() == total

    for words, column, expected in (("binary 16", "N", {"16"}), ("lr 0.01", "learning rate", {"0.01"})):
        page.locator("#filter-text").fill(words)
        assert set(table_column(page, heads.index(column))) == expected
    page.locator("#filter-text").fill("binary lora")
    assert set(table_column(page, heads.index("channel"))) == {"binary"}
    assert set(table_column(page, heads.index("agent"))) == {"LoRA policy"}
    assert status.inner_text() == f"12 of 12 settings shown, {total} in all"
    page.get_by_label("N", exact=True).select_option("16")
    assert set(table_column(page, heads.index("N"))) == {"16"}
    assert page.locator("#settings tbody tr").count() == 6

    button = page.locator("#settings th button", has_text="E50")
    button.focus()
    page.keyboard.press("Enter")
    medians = [float(text.split(" [")[0].replace(",", "")) for text in table_column(page, heads.index("E50"))]
    assert medians == sorted(medians)
    page.keyboard.press("Enter")
    assert page.locator("#settings th[aria-sort=descending]").count() == 1
    again = [float(text.split(" [")[0].replace(",", "")) for text in table_column(page, heads.index("E50"))]
    assert again == sorted(medians, reverse=True)
    page.locator("#filter-text").fill("no such words")
    assert page.locator("#settings tbody tr").count() == 0


def test_every_control_has_a_name_and_every_figure_words(open_page):
    page = open_page()
    nameless = (
        "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert page.eval_on_selector_all("select, input, button", nameless) == 0
    words = "all => all.every(e => e.getAttribute('role') === 'img' && e.getAttribute('aria-label').length > 100)"
    assert page.eval_on_selector_all(".drawing", words)
    assert page.locator("h1").count() == 1
    assert page.locator("figcaption").count() == len(FIGURES)


def test_the_live_page_of_a_sweep_that_runs(browser, tmp_path, monkeypatch):
    """Cells by state, curves, failures and time left, brought up to date by itself, from this machine alone."""
    (tmp_path / "broken.py").write_text(BROKEN_IN_TRIALS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    words = ["N=4", "seeds=4", "reward_type=binary,broken:pay", "env_type=single_step", "learning_rate=3e-3,1e-9"]
    sweep = start(tmp_path, *words, "n_steps=100000", "num_trials=1", "serve=True")
    page, complaints, asked = browser.new_page(viewport={"width": 400, "height": 800}), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        found = next(
            filter(None, (re.search(r"http://127\.0\.0\.1:\d+/live\.html", line) for line in sweep.stdout or ()))
        )
        page.goto(found[0])
        # It loads itself anew until all is told: the policies that can learn have, and the others go on.
        page.get_by_text("16 cells: 4 memorized, 8 failed, 4 to go").wait_for(timeout=2 * DEADLINE_S * 1000)
        page.locator("h1 + p", has_text=re.compile(r"\d:\d\d (min|h) left")).wait_for(timeout=DEADLINE_S * 1000)
        (failure,) = page.locator("li").all_inner_texts()
        assert failure.startswith("8 × broken:pay, N = 4: ValueError: ")
        assert "RuntimeError: no <b>reward</b>" in failure
        assert page.locator("figcaption").inner_text().startswith("binary, N = 4: 4 runs, 1.")
        assert page.locator("polyline:not(.full)").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.evaluate("document.querySelectorAll('a, button, input, [tabindex]').length") == 0
        loads = len(asked)
        deadline = time.monotonic() + DEADLINE_S
        while len(asked) == loads and time.monotonic() < deadline:
            page.wait_for_timeout(500)
        assert len(asked) > loads
    finally:
        os.killpg(sweep.pid, signal.SIGINT)
        finish(sweep)
        page.close()
    assert complaints == []
    assert set(asked) == {found[0]}
