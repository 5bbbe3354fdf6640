"""Work in processes of their own: what they load and allocate is gone when they have ended."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Any


def run_apart(work: str, *inputs: Iterable[object], num_processes: int = 1) -> list[Any]:
    """Does work in fresh processes, so many at once; its inputs and results travel by pickle.

    Args:
        work: `module:function`, which they import, and not this process.
        inputs: of each piece of work, as of `map`.
        num_processes: at once.

    Returns:
        What the work returned, in the order of its inputs.

    Raises:
        BrokenProcessPool: a process ended before its work, such as for want of memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=spawn) as pool:
        return list(pool.map(do_work, *zip(*((work, *each) for each in zip(*inputs, strict=True)), strict=True)))


def do_work(work: str, *inputs: object) -> Any:
    """Imports a function, `module:function`, and calls it."""
    module, _, function = work.partition(":")
    return getattr(import_module(module), function)(*inputs)
