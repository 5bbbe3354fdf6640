"""Checks the annotated shapes and types of functions and dataclasses whenever tests call them."""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

# numpy's own numbers stand for Python's.
overrides = FrozenDict(
    {
        int: int | np.integer,
        float: float | int | np.floating | np.integer,
        bool: bool | np.bool_,
    }
)
check = beartype(conf=BeartypeConf(hint_overrides=overrides))
