"""Fields of chz classes that tell their default and their meaning; chz itself shows neither."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import chz


def field(*, default: object, doc: str, role: str | None = None, munger: Callable[..., object] | None = None) -> Any:
    """A field of a chz class, as `chz.field` makes it.

    Args:
        default: its value where none is given.
        doc: what it means, for `--help`.
        role: what it is for, of a field of TrainConfig.
        munger: gives the field its value, from the instance and what was given.
    """
    return chz.field(default=default, doc=doc, metadata={"doc": doc, "role": role}, munger=munger)


def find_default(cls: type, name: str) -> object:
    """The value of a field where none is given."""
    return signature(cls).parameters[name].default


def find_doc(cls: type, name: str) -> str:
    """What a field means."""
    return (chz.chz_fields(cls)[name].metadata or {})["doc"]
