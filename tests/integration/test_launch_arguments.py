"""What the launcher answers without starting Ray: each bad input of a sweep, help, and a dry run."""

import subprocess
import sys
from pathlib import Path

import pytest

from memrl.launch import main

ROOT = Path(__file__).parents[2]


def launch(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sweeps" / "launch.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=bitrte"], "unknown grid 'bitrte'; did you mean 'bitrate'?"),
        ([], "grid must name a sweep, got none; write grid=NAME; choose from absorb, bandwidth, bitrate, bits, "),
        (["grid=smoke", "pack_sise=2"], "unknown field 'pack_sise'; did you mean 'pack_size'?"),
        (["grid=smoke", "reward_type=binery"], "did you mean 'binary'?"),
        (["grid=smoke", "N=1"], "N must be at least 2, got 1"),
        (["grid=smoke", "N=16,x"], "N must be an integer, got 'x'"),
        (["grid=smoke", "secret=99"], "secret must lie in 0 .. 15, got 99"),
        (["grid=smoke", "reward_type=binned_distance", "reward_bins=none"], "reward_bins must be set for"),
        (["grid=smoke", "reward_bins=1"], "reward_bins must lie in 2 .. N="),
        (["grid=smoke", "reward_bins=32", "N=16"], "reward_bins must lie in 2 .. N=16, got 32"),
        (["grid=smoke", "reward_type=per_bit", "env_type=single_step"], "reward_type must not be per_bit on"),
        (["grid=smoke", "group_size=1"], "group_size must be at least 2 for advantage=group_centered"),
        (["grid=smoke", "lora_rank=0"], "lora_rank must be at least 1, got 0"),
        (["grid=smoke", "lora_rank=-1"], "lora_rank must be at least 1, got -1"),
        (["grid=smoke", "model=./missing"], "model must be embedded, a readable model folder, "),
        (["grid=smoke", "seeds=0"], "seeds must be a count from 1 or a list of integers from 0, got 0"),
        (["grid=smoke", "results=gopher://x"], "results must be a folder or an address such as s3://"),
        (["grid=smoke", "reward_type=nowhere:f"], "reward_type must name an importable function"),
        (["grid=smoke", "device=cuda"], "device must be cpu or auto where there is no GPU, got cuda"),
        (["smoke"], "arguments must have the form key=value, got 'smoke'"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("os._exit(3)", "which ends its process"),
        ("sys.exit(3)", "raised SystemExit: 3"),
        ("return 1.0", "got shape () for (2, 2)"),
    ],
)
def test_a_reward_that_ends_its_process_or_pays_wrongly_is_one_line(tmp_path, body, problem):
    (tmp_path / "mine.py").write_text(f"import os, sys\n\ndef pay(guess, secret, N):\n    {body}\n")
    result = launch("grid=smoke", "reward_type=mine:pay", "env_type=single_step", "dry_run=True", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: reward_type must ")
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["dry_run=True"]])
def test_a_prompt_that_is_not_calibrated_is_refused_before_ray_starts(tmp_path, words):
    result = launch("grid=smoke", "N=16,48", "seeds=1", *words, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: model must be calibrated for N=48 env_type=single_step (prior ")
    assert "python -m memrl.warmup_train model=embedded N=48" in result.stderr
    assert result.stderr.endswith("then use model=FOLDER (and 1 more)\n")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_a_damaged_part_in_one_line_and_moves_nothing(tmp_path):
    part = tmp_path / "results" / "smoke" / "curves" / "part-0.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PAR1")
    result = launch("grid=smoke", "dry_run=True", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {part} must be a whole part of its table, got ")
    assert result.stderr.count("\n") == 1
    assert part.read_bytes() == b"PAR1"


def test_help_shows_every_kind_of_field():
    result = launch("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: python sweeps/launch.py grid=NAME")
    for word in ("grid=", "seeds=", "pack_size=", "dry_run=False", "learning_rate=0.003"):
        assert f"  {word}" in result.stdout


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    words = ["grid=smoke", "N=16,64,100", "reward_type=binary", "learning_rate=1e-3,3e-3", "seeds=5", "pack_size=16"]
    result = launch(*words, "dry_run=True", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    # Three N, two binary channels (single_step and multi_step), two learning rates, five seeds.
    assert result.stdout.startswith("smoke: 60 cells, 0 of them finished\nto run: 60 cells in 4 packs of up to 15, on ")
    assert "tables: results/smoke/episodes_to_memorize" in result.stdout
    assert list(tmp_path.iterdir()) == []


ONE_CELL = ["grid=smoke", "N=4", "seeds=1", "reward_type=binary", "env_type=single_step"]


@pytest.mark.parametrize("words", [["grid=smoke", "N=1"], ["--help"], [*ONE_CELL, "dry_run=True"]])
def test_neither_ray_nor_torch_is_loaded_for_an_answer_without_them(words, tmp_path):
    program = f"""
import runpy, sys
sys.argv = ["launch.py", *{words!r}]
try:
    runpy.run_path({str(ROOT / "sweeps" / "launch.py")!r}, run_name="__main__")
except SystemExit:
    print("loaded", sorted({{"ray", "torch", "pandas", "transformers"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=True)
    assert result.stdout.endswith("loaded []\n")
