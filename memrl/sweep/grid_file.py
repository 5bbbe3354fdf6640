"""Grid files: a small and plain part of YAML, whose scalars are read as on the command line."""

import re
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeAlias

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from memrl.errors import tell_error

MOST_BYTES = 100_000
"""A grid file is no larger."""

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
"""What a grid file says."""

_SCALARS = {
    "null": (r"(?:~|null|)", ["~", "n", ""]),
    "bool": (r"(?:true|false|True|False)", list("tfTF")),
    "int": (r"[-+]?[0-9]+(?:_[0-9]+)*", list("-+0123456789")),
    "float": (r"[-+]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
}
"""What each kind of scalar looks like, and begins with; all others are texts: yes, 0x10, 12:30, 2026-01-31."""


def read_document(path: Path) -> Value:
    """What a file says, in dicts, lists and scalars.

    Raises:
        ValueError: it is too large, no UTF-8, no YAML, or has a key twice, an alias, or a tag of its own.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"grid {path.stem} must have at most {MOST_BYTES:,} bytes, got {path.stat().st_size:,}")
    return parse_document(f"grid {path.stem}", content)


def parse_document(name: str, content: bytes) -> Value:
    """The same, of a file's bytes.

    >>> parse_document("grid g", b"{N: [1e3, 010, yes]}")
    {'N': [1000.0, 10, 'yes']}

    Raises:
        ValueError: as above.
    """
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{name} must be valid YAML, got {tell_error(error)}") from None
    except RecursionError:
        raise ValueError(f"{name} must be valid YAML, got lists within lists without end") from None


class _Loader(yaml.SafeLoader):
    """Reads mappings, lists and scalars of five kinds."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it
    yaml_constructors: dict[str | None, Callable[..., object]] = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "float", "str", "seq", "map")
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses aliases, by which a short file can stand for a list without end."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, f"an alias, *{event.anchor}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Refuses a key that is there twice, of which YAML would take the last without a word."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            raise ConstructorError(None, None, f"the key {twice[0]} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _read_bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return loader.construct_scalar(node).lower() == "true"


_Loader.add_constructor("tag:yaml.org,2002:int", _read_int)
_Loader.add_constructor("tag:yaml.org,2002:bool", _read_bool)
for _kind, (_pattern, _beginnings) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"{_pattern}\\Z"), _beginnings)
