"""The documentation's site: `make docs` checks its links; here, that it leaves no page out."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_every_page_has_a_place_in_the_navigation():
    # The tag of Python names is no plain YAML.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2])
    listed = {page for entry in nav for places in entry.values() for page in _list_pages(places)}
    pages = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]}
    assert pages <= listed
    assert all((ROOT / page).is_file() for page in listed)


def _list_pages(places: str | list[dict[str, str]]) -> list[str]:
    return [places] if isinstance(places, str) else [page for place in places for page in place.values()]
