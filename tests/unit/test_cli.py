import subprocess
import sys
from typing import Literal

import chz
import pytest

from memrl.cli import build, format_help, parse_arguments, read_value, read_words, split_words
from memrl.config import TrainConfig
from memrl.fields import find_doc
from memrl.policy.model_folder import check_model_folder
from memrl.sweep.execution import Execution


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(words, TrainConfig, Execution)
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err.strip()


def test_words_reach_the_class_that_has_the_field():
    config, execution = parse_arguments(
        ["N=10", "learning_rate=1e-2", "pack_size=3", "dry_run=true"], TrainConfig, Execution
    )
    assert (config.N, config.learning_rate) == (10, 0.01)
    assert (execution.pack_size, execution.dry_run) == (3, True)
    assert config == TrainConfig(N=10, learning_rate=0.01)


def test_defaults_of_a_command_give_way_to_words():
    defaults = {"algorithm": "sft", "n_steps": 7}
    config = build(TrainConfig, split_words(["n_steps=9"]), defaults)
    assert (config.algorithm, config.n_steps) == ("sft", 9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lerning_rate=3"], "unknown field 'lerning_rate'; did you mean 'learning_rate'?"),
        (["+N=64"], "arguments must have the form key=value, got '+N=64'; write N=64"),
        (["trainer.N=64"], "arguments must have the form key=value, got 'trainer.N=64'; write N=64"),
        (["N:=64"], "arguments must have the form key=value, got 'N:=64'; write N=64"),
        (["lr=1e-3"], "unknown field 'lr'; did you mean 'learning_rate'?"),
        (["n=64"], "unknown field 'n'; did you mean 'N'?"),
        (["seed=9223372036854775808"], "seed must lie below 2^63, got an integer of 64 bits"),
        (["n_steps=1e23"], "n_steps must lie below 2^63, got an integer of 77 bits"),
        (["pack_sise=3"], "unknown field 'pack_sise'; did you mean 'pack_size'?"),
        (["loss=importance_sampeling"], "did you mean 'importance_sampling'?"),
        (["reward_type=binery"], "did you mean 'binary'?"),
        (["credit=per_stp"], "did you mean 'per_step'?"),
        (["device=gpu"], "device must be one of auto, cpu, cuda, got 'gpu'"),
        (["N=1"], "N must be at least 2, got 1"),
        (["N=abc"], "N must be an integer, got 'abc'"),
        (["N=2.5"], "N must be an integer, got '2.5'"),
        (["N=1e999"], "N must be an integer, got '1e999'"),
        (["N="], "N must be an integer, got ''"),
        (["learning_rate=fast"], "learning_rate must be a number, got 'fast'"),
        (["learning_rate=nan"], "learning_rate must be finite, got nan"),
        (["learning_rate=0"], "learning_rate must be positive, got 0.0"),
        (["N=64", "secret=64"], "secret must lie in 0 .. 63, got 64"),
        (["reward_type=binned_distance"], "reward_bins must be set for reward_type=binned_distance"),
        (["reward_type=binned_distance", "reward_bins=1"], "reward_bins must lie in 2 .. N=64, got 1"),
        (["reward_type=binned_distance", "reward_bins=65"], "reward_bins must lie in 2 .. N=64, got 65"),
        (["reward_type=per_bit"], "reward_type must not be per_bit on env_type=single_step (use multi_step)"),
        (["group_size=1"], "group_size must be at least 2 for advantage=group_centered"),
        (["lora_rank=0"], "lora_rank must be at least 1, got 0"),
        (["lora_rank=-8"], "lora_rank must be at least 1, got -8"),
        (["pack_size=0"], "pack_size must be at least 1, got 0"),
        (["gpu_memory_utilization=1.5"], "gpu_memory_utilization must lie in (0, 1], got 1.5"),
        (["dry_run=maybe"], "dry_run must be True or False, got 'maybe'"),
        (["--N=64"], "arguments must have the form key=value, got '--N=64'; write N=64"),
        (["--N", "64"], "arguments must have the form key=value, got '--N'; write N=value"),
        (["N"], "write N=value"),
        (["N=4", "N=5"], "N must be given once, got N=4 and N=5"),
        (["model=/nonexistent/folder"], "model must be embedded, a readable model folder, "),
        (["model=embeded"], "did you mean 'embedded'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, message):
    assert message in refuse(capsys, *words)


def test_a_model_folder_that_cannot_be_read_is_refused_with_its_problem(capsys, tmp_path):
    assert "it holds no config.json" in refuse(capsys, f"model={tmp_path}")


@pytest.mark.parametrize("model", ["embedded", "Qwen/Qwen3-8B", "gpt2"])
def test_names_that_may_be_models_pass(model):
    check_model_folder(model)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "1e3", 1000),
        (int, "-3", -3),
        (int, "12345678901234567890", 12345678901234567890),
        (float, "1e-3", 0.001),
        (float, "3", 3.0),
        (bool, "False", False),
        (bool, "yes", True),
        (str, "a=b", "a=b"),
        (int | None, "none", None),
        (int | None, "4", 4),
        (Literal["a", "b"] | None, "b", "b"),
        (Literal["a", "b"] | None, "None", None),
    ],
)
def test_texts_are_read_as_their_type(annotation, text, value):
    read = read_value("x", annotation, text)
    assert read == value
    assert type(read) is type(value)


def test_a_value_may_hold_equals_signs():
    assert split_words(["results=s3://b/k?x=1"]) == {"results": "s3://b/k?x=1"}


def test_help_names_every_field_with_default_and_meaning(capsys):
    words = ["N=oops", "--help"]
    with (
        pytest.raises(SystemExit) as exit_,
        read_words(words, TrainConfig, Execution, defaults={"n_steps": 500}, usage="usage: x"),
    ):
        pass
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert text.startswith("usage: x")
    assert "n_steps=500" in text
    for cls in (TrainConfig, Execution):
        for name in chz.chz_fields(cls):
            assert f"  {name}=" in text
            assert find_doc(cls, name).split()[0] in text


def test_help_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    lines = format_help("", (TrainConfig, Execution), {}).splitlines()
    assert max(map(len, lines)) <= 90


@pytest.mark.parametrize("word", ["--help", "N=1", "model=embeded", "lerning_rate=1"])
def test_help_and_bad_input_load_nothing_heavy(word):
    program = f"""
import sys
from memrl.cli import parse_arguments
from memrl.config import TrainConfig
from memrl.sweep.execution import Execution
try:
    parse_arguments([{word!r}], TrainConfig, Execution)
except SystemExit:
    heavy = {{"numpy", "pandas", "pyarrow", "torch", "ray", "transformers", "rich", "yaml"}} & set(sys.modules)
    print("loaded", sorted(heavy), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr.endswith("loaded []\n")
