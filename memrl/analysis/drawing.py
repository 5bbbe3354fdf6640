"""How every figure is drawn: one chart at two widths, as SVG with text as text, and from that SVG as PDF and PNG.

The page shows the same SVG that the files hold: no script, no plot library in the browser, a tooltip of the browser's
own on every mark, and the same drawing on a screen, on paper and in a manuscript.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import pandas as pd
import vl_convert

INK, SOFT, GRID, PAPER = "#111111", "#666666", "#E4E4E4", "#FFFFFF"
_FONT = "Arial, Liberation Sans, Helvetica, sans-serif"
_POINTS_PER_INCH = 72
_SVG = "http://www.w3.org/2000/svg"
_PNG_SCALE = 3.0
"""Times 96 pixels per inch."""


@dataclass(frozen=True)
class Width:
    """A width at which figures are drawn.

    Attributes:
        name: the page's class for it.
        suffix: of its files.
        inches: on paper.
        num_columns: small panels side by side.
    """

    name: str
    suffix: str
    inches: float
    num_columns: int

    @property
    def points(self) -> float:
        """The width in points, the unit of every chart."""
        return self.inches * _POINTS_PER_INCH


COLUMN = Width("column", "-column", 3.3, 2)
PAGE = Width("page", "", 6.9, 4)
WIDTHS = (COLUMN, PAGE)
"""One column and the whole page of a journal; a phone and a screen."""

Drawer = Callable[[pd.DataFrame, Width], alt.TopLevelMixin]

_AXIS = {
    "labelFontSize": 7,
    "titleFontSize": 7,
    "titleFontWeight": "normal",
    "labelColor": INK,
    "titleColor": INK,
    "domainColor": SOFT,
    "domainWidth": 0.6,
    "gridColor": GRID,
    "gridWidth": 0.5,
    "tickColor": SOFT,
    "tickWidth": 0.6,
    "tickSize": 2.5,
    "tickRound": False,
    "labelPadding": 2,
    "titlePadding": 4,
}
_THEME = {
    "font": _FONT,
    "background": "transparent",
    # Browsers have wider letters than the library that measures the labels.
    "padding": {"left": 9, "top": 1, "right": 1, "bottom": 1},
    "view": {"stroke": None},
    "axis": _AXIS,
    "text": {"fontSize": 7, "color": INK},
    "title": {"fontSize": 7.5, "color": INK, "anchor": "start", "offset": 3},
    "legend": {
        "orient": "top",
        "offset": 4,
        "titleFontSize": 7,
        "titleFontWeight": "normal",
        "labelFontSize": 7,
        "titleColor": INK,
        "labelColor": INK,
        "symbolSize": 40,
        "symbolStrokeWidth": 1.2,
        "labelLimit": 0,
        "columnPadding": 8,
    },
    "concat": {"spacing": 8},
}


def render_svg(chart: alt.TopLevelMixin, width: Width) -> str:
    """A chart as SVG, as wide as asked for, with its marks' descriptions as tooltips.

    Args:
        chart: laid out for about `width.points`, in points; a mark's `description` becomes its tooltip.
        width: a chart that is a little too wide is scaled to it, and a narrow one keeps its size at the left.
    """
    spec = chart.to_dict(validate=False) | {"config": _THEME}
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(spec))
    _, _, drawn, height = (float(number) for number in root.attrib["viewBox"].split())
    drawn = max(drawn, width.points)
    root.set("viewBox", f"0 0 {drawn:g} {height:g}")
    root.set("width", f"{width.inches:g}in")
    root.set("height", f"{width.inches * height / drawn:.4g}in")
    _tidy(root)
    root.set("font-family", _FONT)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(root: ElementTree.Element) -> None:
    """Turns the labels of marks into titles, and drops what is not drawn and what else Vega says of itself."""
    for element in root.iter():
        for child in [child for child in element if child.attrib.get("display") == "none"]:
            element.remove(child)
        label = element.attrib.get("aria-label", "")
        if element.attrib.get("role") == "graphics-symbol" and "axis" not in element.attrib.get("class", "") and label:
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = label
            element.insert(0, title)
        for name, value in list(element.attrib.items()):
            if name.startswith("aria-") or name in ("role", "class", "font-family"):
                del element.attrib[name]
            elif name in ("d", "transform"):
                element.set(name, re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value))


def save_drawing(svg: str, stem: Path) -> None:
    """Writes a drawing as SVG and PDF."""
    stem.with_name(f"{stem.name}.svg").write_text(svg, "utf-8")
    # A PDF's unit is the point.
    in_points = re.sub(r'="([\d.]+)in"', lambda inches: f'="{float(inches[1]) * _POINTS_PER_INCH:g}"', svg, count=2)
    stem.with_name(f"{stem.name}.pdf").write_bytes(vl_convert.svg_to_pdf(in_points))


def save_png(svg: str, path: Path) -> None:
    """Writes a drawing as PNG on white paper, 288 pixels per inch."""
    on_paper = svg.replace(">", f'><rect width="100%" height="100%" fill="{PAPER}"/>', 1)
    path.write_bytes(vl_convert.svg_to_png(on_paper, scale=_PNG_SCALE))
