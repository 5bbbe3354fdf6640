"""The report in a browser: drawn whole, without an error, filtered and sorted, and not too wide for a phone."""

import shutil

import pytest
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
PLOTS = {"ledger": 2, "episodes": 4, "rate": 1, "learning": 4, "maps": 4, "prior": 2, "leak": 4}
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
    """Opens the report, waits until it is drawn, and fails on anything that the console or the network complains of."""
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
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=PATIENCE_MS)
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()
    assert complaints == []


def count_drawn(page, name):
    """Plots of a figure that plotly has drawn, with something in them."""
    marks = "path.js-line, .bars path, .points path, .hm image"
    return page.eval_on_selector_all(
        f"figure[data-figure={name}] .plot", f"plots => plots.filter(p => p.querySelector('{marks}')).length"
    )


def find_cut_off(page):
    """Titles of plots that are drawn wider than their place on the page."""
    return page.eval_on_selector_all(
        ".plot",
        "plots => plots.filter(p => p.querySelector('.main-svg').getBoundingClientRect().width > p.clientWidth + 1)"
        ".map(p => p.getAttribute('aria-label'))",
    )


def test_every_figure_is_drawn(open_page):
    page = open_page()
    assert {name: count_drawn(page, name) for name in PLOTS} == PLOTS
    assert find_cut_off(page) == []


@pytest.mark.parametrize("options", [{"viewport": {"width": 400, "height": 800}}, {"color_scheme": "dark"}])
def test_narrow_and_dark_pages_draw_too_and_do_not_overflow(open_page, options):
    page = open_page(**options)
    assert sum(count_drawn(page, name) for name in PLOTS) == sum(PLOTS.values())
    width, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= window
    inside = "plots => plots.every(p => p.getBoundingClientRect().right <= window.innerWidth)"
    assert page.eval_on_selector_all(".plot", inside)
    assert find_cut_off(page) == []


def test_another_N_is_one_choice_away_by_keyboard(open_page):
    page = open_page()
    choice = page.get_by_label("Learning curves in bits: which N")
    assert choice.locator("option:checked").inner_text() == "N = 64"
    top = "figure[data-figure=learning] .plot"
    before = page.eval_on_selector(top, "plot => plot.layout.yaxis.range[1]")
    choice.focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"document.querySelector('{top}')?.layout?.yaxis?.range[1] < {before}", timeout=PATIENCE_MS)
    assert choice.locator("option:checked").inner_text() == "N = 16"
    assert page.eval_on_selector(top, "plot => plot.layout.yaxis.range[1]") == pytest.approx(4 * 1.08)


def table_column(page, index):
    return page.eval_on_selector_all("#settings tbody tr", f"rows => rows.map(r => r.cells[{index}].textContent)")


def test_filter_sort_and_paging_of_the_table(open_page):
    page = open_page()
    heads = [text.rstrip(" ↕↑↓") for text in page.locator("#settings thead th").all_inner_texts()]
    status = page.locator("#settings-status")
    total = int(status.inner_text().split(" of ")[1].split()[0])
    assert page.locator("#settings tbody tr").count() == min(50, total)
    page.locator("#settings-more").click()
    assert page.locator("#settings tbody tr").count() == total

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
    assert page.eval_on_selector_all(".plot", "plots => plots.every(p => p.getAttribute('aria-label').length > 10)")
    assert page.locator("h1").count() == 1
    assert page.locator("figcaption").count() == len(PLOTS)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdicts"
