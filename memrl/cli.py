"""The one way in which commands read `key=value` arguments into chz classes.

Nothing here imports more than chz, so that `--help` and a bad argument answer at once.
"""

import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import chz

from memrl.config import TrainConfig
from memrl.errors import RefusedError, StartError, tell_error
from memrl.fields import find_default, find_doc
from memrl.policy.model_folder import check_model_folder
from memrl.suggest import as_typed, did_you_mean
from memrl.sweep.execution import RunOptions

T = TypeVar("T")

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes of every command, besides 0: something failed; the input is refused; Ctrl-C."""

_ONE_WORD = {"sweeps/launch.py": "sweep", "-m memrl.report": "report"}
"""Commands as the program `memrl` calls them."""

_HELP = ("-h", "--help")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_WIDEST_WORD = 34
_LONGEST_LINE = 1000


@contextmanager
def read_words(
    argv: Sequence[str], *classes: type, usage: str = "", defaults: Mapping[str, object] | None = None
) -> Iterator[dict[str, str]]:
    """Cuts a command line into words, once, for a block that builds its instances from them.

    On `--help` it prints every field and ends the process with exit code 0; on words that can't be read, and on any
    ValueError of the block, it prints one line `error: ...` and ends with exit code 2.

    Args:
        argv: the words after the command's name.
        *classes: chz classes with distinct purposes, such as TrainConfig and Execution, whose fields the words name.
        usage: the text that stands above the fields in `--help`: what the command does, and an example.
        defaults: values that this command sets unless the words do; for `--help`.
    """
    if any(word in _HELP for word in argv):
        print(format_help(usage, classes, defaults or {}))
        raise SystemExit(0)
    with exit_on_bad_input():
        words = split_words(argv)
        reject_unknown(words, [name for cls in classes for name in chz.chz_fields(cls)])
        yield words


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command on this process's words and ends the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        raise SystemExit(main(sys.argv[1:]))
    except StartError as error:
        _end_with(error, BAD_INPUT if isinstance(error, RefusedError) else FAILED)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def repeat_command(script: str, argv: Sequence[str]) -> str:
    """The command line that does the same again, ready to be pasted into a shell.

    Args:
        script: what python runs, such as `sweeps/launch.py` or `-m memrl.report`.
        argv: its words.
    """
    by_one_word = os.path.basename(sys.argv[0]) == "memrl" and script in _ONE_WORD
    program = f"memrl {_ONE_WORD[script]}" if by_one_word else f"python {script}"
    return as_typed(f"{program} {shlex.join(argv)}")


def parse_arguments(argv: Sequence[str], *classes: type, usage: str = "") -> tuple[Any, ...]:
    """Reads `key=value` words into one instance of each chz class; see `read_words`.

    A word sets the field of that name in every class that has one.

    Returns:
        The instances, in the order of `classes`.
    """
    with read_words(argv, *classes, usage=usage) as words:
        instances = tuple(build(cls, words) for cls in classes)
        for instance in instances:
            check_model_folder(getattr(instance, "model", "embedded"))
    return instances


def read_cell(argv: Sequence[str], algorithm: str, usage: str) -> tuple[TrainConfig, RunOptions]:
    """Reads the command line of a command that trains one cell by one algorithm; see `read_words`.

    Refused are another algorithm, and a field that was given although the cell does not use it, such as reward_bins of
    a binary reward.
    """
    defaults = {"algorithm": algorithm}
    with read_words(argv, TrainConfig, RunOptions, usage=usage, defaults=defaults) as words:
        cell, options = build(TrainConfig, words, defaults), build(RunOptions, words)
        check_model_folder(cell.model)
        if cell.algorithm != algorithm:
            other = f"{as_typed(f'python -m memrl.{cell.algorithm}_train')} trains the other"
            raise ValueError(f"algorithm must be {algorithm} ({other}), got {cell.algorithm}")
        used = cell.identity()
        for name, text in words.items():
            if name in used and used[name] is None and getattr(cell, name) is not None:
                rule = f"be left out where channel {cell.channel_name} has no use for it"
                raise ValueError(f"{name} must {rule}, got {text}")
    return cell, options


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Ends the process with one line `error: ...` and exit code 2 where the block raises a ValueError.

    It belongs around the reading of arguments alone: a ValueError of later work is a bug, and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        _end_with(error, BAD_INPUT)


def _end_with(error: Exception, code: int) -> NoReturn:
    """Prints the error as one line and ends the process."""
    line = tell_error(error)
    print(f"error: {line if len(line) <= _LONGEST_LINE else f'{line[:_LONGEST_LINE]} ...'}", file=sys.stderr)
    raise SystemExit(code) from None


def split_words(argv: Iterable[str]) -> dict[str, str]:
    """Cuts `key=value` words into a dict of texts.

    >>> split_words(["N=64", "reward_type=binary"])
    {'N': '64', 'reward_type': 'binary'}

    Raises:
        ValueError: a word has another form, or a key comes twice.
    """
    words: dict[str, str] = {}
    for word in argv:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            # Of +N, --N, trainer.N and N: it is the last part that a field may be called.
            example = f"{(re.findall(r'[A-Za-z_]+', name) or ['key'])[-1]}={text or 'value'}"
            example += f" or FIELD={name}" if name == word and name.isidentifier() else ""
            raise ValueError(f"arguments must have the form key=value, got {word!r}; write {example}")
        if name in words:
            raise ValueError(f"{name} must be given once, got {name}={words[name]} and {name}={text}")
        words[name] = text
    return words


def reject_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a ValueError with a suggestion for the first name that is not known."""
    known = list(dict.fromkeys(known))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown field {name!r}{did_you_mean(name, known)}")


def build(cls: type[T], words: Mapping[str, str], defaults: Mapping[str, object] | None = None) -> T:
    """An instance of a chz class from the words that name its fields.

    Raises:
        ValueError: a text can't be read as its field's type, or the class refuses the values.
    """
    fields = chz.chz_fields(cls)
    values = {name: value for name, value in (defaults or {}).items() if name in fields}
    values |= {name: read_field(cls, name, text) for name, text in words.items() if name in fields}
    return cls(**values)


def read_field(cls: type, name: str, text: str) -> object:
    """Reads a text as the type of a chz class's field.

    >>> from memrl.config import TrainConfig
    >>> read_field(TrainConfig, "n_steps", "1e3"), read_field(TrainConfig, "secret", "none")
    (1000, None)

    Raises:
        ValueError: the text is not of that type.
    """
    if name == "model" and os.path.isdir(text):
        # One folder, one name: ./model, model/ and model are one base model, and so the same cells.
        text = os.path.normpath(text)
    return read_value(name, chz.chz_fields(cls)[name].final_type, text)


def read_value(name: str, annotation: object, text: str) -> Any:
    """Reads a text as str, int (1e3 is one), float, bool, a Literal, or an optional of these (`none` unsets it)."""
    plain, optional = _split_optional(annotation)
    if optional and text.lower() in ("none", ""):
        return None
    if get_origin(plain) is Literal:
        choices = [str(choice) for choice in get_args(plain)]
        if text not in choices:
            hint = did_you_mean(text, choices) if get_close_matches(text, choices) else ""
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {text!r}{hint}")
        return get_args(plain)[choices.index(text)]
    if plain is bool:
        return _read_bool(name, text)
    if plain in (int, float):
        return _read_number(name, plain, text)
    return text


def _split_optional(annotation: object) -> tuple[object, bool]:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    others = [type_ for type_ in get_args(annotation) if type_ is not NoneType]
    return others[0], len(others) < len(get_args(annotation))


def _read_bool(name: str, text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{name} must be True or False, got {text!r}")
    return text.lower() in _TRUE


def _read_number(name: str, plain: object, text: str) -> int | float:
    rule = "be an integer" if plain is int else "be a number"
    try:
        if plain is int and re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} must {rule}, got {text!r}") from None
    if plain is int and not number.is_integer():
        raise ValueError(f"{name} must {rule}, got {text!r}")
    return int(number) if plain is int else number


def format_help(usage: str, classes: Sequence[type], defaults: Mapping[str, object]) -> str:
    """The text of `--help`: usage, then the fields of every class with type, default and meaning."""
    width = min(shutil.get_terminal_size().columns, 120)
    parts = [usage.strip()] if usage else []
    for cls in classes:
        heading = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
        rows = [_format_field(cls, name, defaults, width) for name in chz.chz_fields(cls)]
        parts.append("\n".join([heading, *rows]))
    return "\n\n".join(parts)


def _format_field(cls: type, name: str, defaults: Mapping[str, object], width: int) -> str:
    plain, _ = _split_optional(chz.chz_fields(cls)[name].final_type)
    literal = get_origin(plain) is Literal
    type_name = " | ".join(map(str, get_args(plain))) if literal else getattr(plain, "__name__", str(plain))
    default = defaults.get(name, find_default(cls, name))
    word = f"  {name}={'' if default is None else default}" if isinstance(default, str | int | float | None) else name
    text = f"{find_doc(cls, name)} [{type_name}{', unset' if default is None else ''}]"
    indent = " " * _WIDEST_WORD
    lines = textwrap.wrap(text, max(width - _WIDEST_WORD, 30), break_long_words=False)
    head = word.ljust(_WIDEST_WORD) if len(word) < _WIDEST_WORD else f"{word}\n{indent}"
    return head + f"\n{indent}".join(lines)
