"""Where results lie, and the tables' names; imports nothing heavy, so that a command may ask at once."""

import os
from pathlib import Path

CURVES = "curves"
EPISODES_TO_MEMORIZE = "episodes_to_memorize"
AGENTS = "agents"


def own_address(grid: str) -> str:
    """The folder of a sweep that was run here, where nobody says otherwise.

    >>> own_address("bitrate")
    'results/bitrate'
    """
    return f"results/{grid}"


def reference_address(grid: str) -> str:
    """The folder of the result that comes with the code, where a grid has one.

    It lies apart from results/: cells of the reference are not finished cells of a sweep run here, and a glob over
    results/ does not mix the two.

    >>> reference_address("bitrate")
    'sweeps/reference/bitrate'
    """
    return f"sweeps/reference/{grid}"


def find_grids() -> Path:
    """The folder of the grids: sweeps/grids of the working folder or of the checkout, else those of the package."""
    package = Path(__file__).resolve().parents[1]
    folders = (Path("sweeps", "grids"), package.parent / "sweeps" / "grids", package / "grids")
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def has_tables(address: str) -> bool:
    """Whether a local folder holds the tables of a sweep, finished or not."""
    return os.path.isdir(os.path.join(os.path.expanduser(address), "episodes_to_memorize"))


def local_folder(address: str) -> Path:
    """The folder on this machine for what goes with some tables: their own, or one in results/ for tables elsewhere.

    >>> local_folder("results/runs").as_posix(), local_folder("s3://bucket/sweeps/bitrate/").as_posix()
    ('results/runs', 'results/bitrate')
    """
    scheme, separator, path = address.partition("://")
    if not separator:
        return Path(os.path.expanduser(address))
    return Path(path) if scheme == "file" else Path(own_address(path.rstrip("/").rpartition("/")[2]))


def absolute_address(address: str) -> str:
    """The address as a process in another folder has to say it.

    >>> absolute_address("s3://bucket/sweeps/bitrate")
    's3://bucket/sweeps/bitrate'
    """
    return address if "://" in address else str(Path(address).expanduser().absolute())
