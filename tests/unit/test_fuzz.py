"""Whatever a command line or a folder holds, a command reads it or refuses it in one line, with exit code 2."""

import contextlib
import io
import json
import runpy
import struct
from pathlib import Path

import chz
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memrl.cli import BAD_INPUT, parse_arguments, read_cell
from memrl.config import TrainConfig
from memrl.policy.model_folder import check_model_folder
from memrl.sweep.execution import Execution, RunOptions
from memrl.tables.schema import CURVES
from memrl.tables.store import TableStore

FIELDS = [name for cls in (TrainConfig, Execution, RunOptions) for name in chz.chz_fields(cls)]

names = (
    st.sampled_from(FIELDS)
    | st.text(max_size=8)
    | st.sampled_from(["lr", "+N", "trainer.N", "--N", "-h2", "", "__class__"])
)
numbers = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(repr),
    st.sampled_from(["1e3", "010", "1_0", "0x10", "1e400", "-0", "nan", "inf", "١٦", "9" * 5000, "1,2", ""]),
)
choices = st.sampled_from(
    ["sft", "rl", "multi_step", "per_bit", "binned_distance", "vllm", "True", "no", "none", "embedded"]
)
# A reward of one's own is imported, and a model that is no folder is taken for a name on the hub: neither is fuzzed.
values = numbers | choices | st.text(max_size=20) | st.just("x" * 100_000)
command_lines = st.lists(st.tuples(names, values).map("=".join) | st.text(max_size=6), max_size=6)


def run(read, words: list[str]) -> None:
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
        try:
            read(words)
        except SystemExit as exit_:
            code = exit_.code
        else:
            code = None
    if code not in (None, 0):
        assert code == BAD_INPUT
        assert output.getvalue().startswith("error: ")
        assert output.getvalue().count("\n") == 1
        assert len(output.getvalue()) < 2000


@settings(max_examples=300)
@example(["N=" + "9" * 5000])
@example(["max_episodes=1", "n_steps=1e300"])
@example(["model=" + "a" * 5000])
@example(["model=\0"])
@example(["model=~nobody/model"])
@example(["results="])
@given(command_lines)
def test_any_words_of_a_single_run_are_read_or_refused_in_one_line(words):
    run(lambda argv: read_cell(argv, "rl", ""), words)
    run(lambda argv: read_cell(argv, "sft", ""), words)


@settings(max_examples=300)
@given(command_lines)
def test_any_words_of_a_sweep_are_read_or_refused_in_one_line(words):
    run(lambda argv: parse_arguments(argv, TrainConfig, Execution), words)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model_type", "w", "__metadata__", "data_offsets", "shape"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def write_model(folder: Path, config: bytes, weights: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(config)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)


def frame(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@settings(max_examples=300)
@example(config=b"[" * 100_000, weights=frame(b"{}"))
@example(config=b'{"model_type": "llama"}', weights=frame(b"[" * 100_000))
@example(config=b'{"model_type": "llama"}', weights=struct.pack("<Q", 2**63) + b"{}")
@given(
    config=st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()),
    weights=st.binary(max_size=40) | json_values.map(lambda value: frame(json.dumps(value).encode())),
)
def test_any_model_folder_is_taken_or_refused_in_one_line(tmp_path_factory, config, weights):
    folder = tmp_path_factory.getbasetemp() / "model"
    write_model(folder, config, weights)
    message = ""
    try:
        check_model_folder(str(folder))
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


# Not s3:// and its kind: to tell where a bucket lies takes a network.
schemes = st.sampled_from(
    ["", "file://", "memory://", "local://", "gopher://", "simplecache::", "zip://", "://", "file:"]
)


@settings(max_examples=300)
@example("~nobody/results")
@example("a" * 5000)
@given(st.tuples(schemes, st.text(max_size=12)).map("".join))
def test_any_address_is_read_as_empty_or_refused_in_one_line(address):
    message = ""
    try:
        assert TableStore(address).read(CURVES).num_rows == 0
    except ValueError as error:
        message = str(error)
    assert "\n" not in message.replace(address, "")


@pytest.mark.parametrize("name", ["../../smoke", "/etc/passwd", "..", "smoke/../smoke", "\0", "smoke.yaml"])
def test_no_grid_is_read_from_elsewhere(name, capsys):
    launch = runpy.run_path(str(Path(__file__).parents[2] / "sweeps" / "launch.py"))
    with pytest.raises(SystemExit) as exit_:
        launch["main"]([f"grid={name}", "dry_run=True"])
    assert exit_.value.code == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: unknown grid")
