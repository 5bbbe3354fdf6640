"""Checks the annotated shapes and types of functions and dataclasses whenever tests call them."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
