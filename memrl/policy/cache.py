"""The user's cache: what was made once for this machine, such as compiled kernels and calibrated models."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def list_cache_folders() -> list[Path]:
    """Where it may lie: the user's cache, or else a folder of the user's under the temporary one."""
    caches = [Path(cache)] if (cache := os.environ.get("XDG_CACHE_HOME")) else []
    with suppress(RuntimeError):  # There is no home.
        caches = caches or [Path.home() / ".cache"]
    return [*(cache / "memrl" for cache in caches), Path(tempfile.gettempdir()) / f"memrl-{os.getuid()}"]


def find_cache_folder() -> Path:
    """The first of these that can be written, made if need be.

    Raises:
        ValueError: there is none.
    """
    places = list_cache_folders()
    for place in places:
        with suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(place, os.W_OK | os.X_OK):
            return place
    raise ValueError(f"one of {' and '.join(map(str, places))} must be writable, to keep models that are made once")
