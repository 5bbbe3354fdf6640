"""A Ray of a test's own, which leaves nothing behind."""

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray


@contextmanager
def start_ray(**options: Any) -> Iterator[None]:
    """Starts Ray on this machine, quietly, and ends it."""
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            # Ray drops the handles of the processes that it ends without asking how they ended.
            warnings.filterwarnings("ignore", "subprocess .* is still running", ResourceWarning)
            ray.shutdown()
            gc.collect()
