"""The code of a reward function of the user's own, as a short name that changes with it; none of it is run."""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def is_address(text: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None


def name_code(address: str) -> str | None:
    """8 hex digits that stand for the code behind `package.module:function`.

    It is the code of that module, and of what this imports, and so on, out of the folder that the module's package lies
    in; memrl and what is installed count for nothing, and neither do comments and docstrings.

    Returns:
        None where there is no such module on Python's path, nor in the folder that the command runs in.
    """
    module = address.partition(":")[0]
    home = _find_home(module.partition(".")[0])
    codes: dict[str, str] = {}
    pending = list(_with_packages(module)) if home is not None else []
    while pending:
        name = pending.pop()
        path = _locate(name)
        if home is None or path is None or name in codes or not _is_own(name, path, home, module):
            continue
        status = path.stat()
        codes[name], imported = _read_code(name, path, status.st_mtime_ns, status.st_size)
        pending += imported
    return hashlib.sha256(repr(sorted(codes.items())).encode()).hexdigest()[:8] if module in codes else None


def _is_own(name: str, path: Path, home: Path, module: str) -> bool:
    """Whether a module is the user's, and neither memrl's nor Python's nor installed."""
    if name != module and name.partition(".")[0] in ("memrl", *sys.stdlib_module_names):
        return False
    return path.is_relative_to(home) and "site-packages" not in path.relative_to(home).parts


def _find_home(name: str) -> Path | None:
    """The folder that a module without dots lies in, or that is its package."""
    path, folders = _locate(name), _places_of(f"{name}.")
    return path.parent if path is not None else next((Path(folder).resolve() for folder in folders), None)


def _locate(name: str) -> Path | None:
    """The file of a module; None where there is none, as of a folder without `__init__.py`."""
    try:
        spec = PathFinder.find_spec(name, _places_of(name))
    except (ImportError, ValueError, OSError):
        return None
    origin = spec.origin if spec is not None else None
    return Path(origin).resolve() if origin is not None and Path(origin).is_file() else None


def _places_of(name: str) -> list[str]:
    """The folders in which a module may lie: those of its package, which is not imported for that."""
    package = name.rpartition(".")[0]
    if not package:
        return [*sys.path, str(Path.cwd())]
    spec = PathFinder.find_spec(package, _places_of(package))
    return list(spec.submodule_search_locations or ()) if spec is not None else []


@lru_cache(maxsize=256)
def _read_code(name: str, path: Path, changed_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """A file's code without comments and docstrings, and what it may import; `changed_ns` and `size` tell versions."""
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest(), ()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(dict.fromkeys(_list_imports(tree, package)))
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree), imported


def _list_imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of all modules that a module imports or may import, their packages among them."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            yield from _with_packages(name)


def _with_packages(name: str) -> Iterator[str]:
    """A module's packages, outermost first, and the module: Python runs them all.

    >>> list(_with_packages("a.b"))
    ['a', 'a.b']
    """
    parts = name.split(".")
    yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
