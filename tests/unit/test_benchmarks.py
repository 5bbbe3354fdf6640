"""The benchmarks run at a tiny size, and their counts agree with what was counted by hand and by torch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """Makes the scripts importable by the names under which they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run_script(name, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def read_tables(tmp_path, name, *words):
    """Runs a script and returns its tables from the JSON that it writes."""
    output = tmp_path / "numbers.json"
    done = run_script(name, *words, f"output={output}")
    assert done.returncode == 0, done.stderr
    return {table: content["rows"] for table, content in json.loads(output.read_text())["tables"].items()}


@pytest.mark.parametrize("name", ["versus_trl.py", "roofline.py", "scaling.py", "gpu.py"])
def test_help_tells_the_fields(name):
    done = run_script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "rounds=" in done.stdout
    assert "output=" in done.stdout


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("versus_trl.py", "pack_sizes=1,x", "error: pack_sizes must be integers from 1"),
        ("roofline.py", "N=1", "error: N must be at least 2"),
        ("scaling.py", "models=7b", "error: model must be one of"),
        ("gpu.py", "pack_sizes=0", "error: pack_sizes must be integers from 1"),
    ],
)
def test_a_bad_argument_is_one_line(name, word, message):
    done = run_script(name, word)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def count_by_hand(shape, prompts, levels, rank, silent=()):
    """The needed operations, token by token and layer by layer, as a reader would count them with pen and paper."""
    base = adapters = attention = head = 0
    for cell, prompt in enumerate(prompts):
        tokens = [(position + 1, position == prompt - 1) for position in range(prompt)]
        for depth, level in enumerate(levels):
            tokens += [(prompt + depth + 1, True)] * int(level[cell])
        goes_back = cell not in silent
        for seen, is_read in tokens:
            head += (2 + 2 * goes_back) * shape.hidden * shape.vocabulary if is_read else 0
            for index, layer in enumerate(shape.layers):
                is_last = index == len(shape.layers) - 1
                for name, (d_in, d_out) in layer.items():
                    if is_last and not is_read and name not in ("k_proj", "v_proj"):
                        continue
                    first = index == 0 and name in ("q_proj", "k_proj", "v_proj")
                    base += 2 * d_in * d_out * (2 if goes_back and not first else 1)
                    forward = 2 * rank * d_in + 2 * rank * d_out
                    backward = 2 * rank * d_out * 2 + 2 * rank * d_in * (1 if first else 2)
                    adapters += forward + backward * goes_back
                if is_read or not is_last:
                    attention += (2 + 4 * goes_back) * 2 * seen * shape.attention_width
    return base, adapters, attention, head


@pytest.mark.parametrize("silent", [[], [0], [0, 1]])
def test_needed_operations_as_counted_by_hand(benchmarks, silent):
    import numpy as np
    from flops import Fed, Shape, count_operations

    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    widths = [(6, 6), (6, 4), (6, 4), (6, 6), (6, 10), (6, 10), (10, 6)]
    shape = Shape([dict(zip(names, widths, strict=True))] * 3, attention_width=6, hidden=6, vocabulary=11)
    prompts, levels = np.array([3, 5]), [np.array([2, 4]), np.array([1, 0])]
    fed = Fed(prompts, levels, has_gradient=~np.isin([0, 1], silent))
    counted = count_operations(shape, fed, np.array([2, 2]))
    expected = count_by_hand(shape, prompts, levels, 2, silent)
    assert (counted.base, counted.adapters, counted.attention, counted.head) == expected


def test_torch_counts_no_fewer_operations_than_are_needed(benchmarks, monkeypatch):
    """What a walk and its backward pass really multiply covers what is needed, and without padding hardly more."""
    # torch sees only its own products, so the decoder that has no others is counted.
    monkeypatch.setattr("memrl.policy.packed.load_kernels", lambda dtype: None)
    import torch
    from bare_pack import BarePack, build_random_base
    from flops import Shape, count_operations, watch_walks
    from torch.utils.flop_counter import FlopCounterMode

    from memrl.config import TrainConfig

    model = build_random_base("0.2m")
    pack = BarePack(model, [TrainConfig(N=16, group_size=8)], prompt_tokens=2)
    pack.update()
    with watch_walks() as walks, FlopCounterMode(display=False) as counter, torch.enable_grad():
        pack.update()
    needed = count_operations(Shape.of(model), walks[0], pack.state.adapters.ranks).total
    assert walks[0].num_real == walks[0].num_computed
    assert needed <= counter.get_total_flops() < 1.5 * needed


def test_a_walk_feeds_each_distinct_beginning_once(benchmarks):
    from bare_pack import BarePack, build_random_base
    from flops import watch_walks

    from memrl.config import TrainConfig

    cells = [TrainConfig(N=100, group_size=4000, seed=0), TrainConfig(N=10, group_size=4000, seed=1)]
    pack = BarePack(build_random_base("0.2m"), cells, prompt_tokens=4)
    with watch_walks() as walks:
        pack.update()
    # 0 .. 99: ten first digits, then 90 numbers of two; 0 .. 9: ten digits. 4,000 episodes see them all.
    assert [level.tolist() for level in walks[0].levels] == [[10, 10], [90, 0]]
    assert walks[0].prompts.tolist() == [4, 4]


def test_cells_count_a_backward_pass_where_they_have_a_gradient(benchmarks):
    from bare_pack import BarePack, build_random_base
    from flops import watch_walks

    from memrl.config import TrainConfig

    # Of two guesses in 4,096 none is right; by distance hardly two in 1,000 are rewarded alike.
    silent = TrainConfig(N=4096, group_size=2, reward_type="binary")
    heard = TrainConfig(N=1000, group_size=2, reward_type="distance")
    model, found = build_random_base("0.2m"), []
    for cells in ([silent], [silent, heard]):
        with watch_walks() as walks:
            BarePack(model, cells).update()
        found.append(walks[0].has_gradient.tolist())
    assert found == [[False], [False, True]]


def test_the_matmul_rate_is_that_of_the_clock(benchmarks, monkeypatch):
    """With a clock that ticks one second a look, sixteen products of 2·8³ operations take one second."""
    import itertools

    import measure

    ticks = itertools.count()
    monkeypatch.setitem(measure.CLOCKS, "ticking", lambda: float(next(ticks)))
    assert measure.matmul_flops_per_s(clock="ticking", sizes=(8,)) == 16 * 2 * 8**3


def test_arms_take_turns(benchmarks):
    from measure import time_by_turns

    calls = []
    arms = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_by_turns(arms, rounds=3, block_s=0.0, warm_up=1)
    assert "".join(calls) == "ab" + 3 * "aabb"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_every_named_region_is_a_function_of_memrl(benchmarks):
    """A part that is renamed would otherwise vanish into `Python, numpy`."""
    from roofline import CATEGORIES, list_regions

    regions = list_regions()
    assert all(callable(getattr(owner, attribute)) for owner, attribute, _ in regions)
    assert {category for _, _, category in regions} == set(CATEGORIES) - {"head, loss, copies", "Python, numpy"}


def test_a_sweeps_time_is_split_by_what_trials_recorded(benchmarks):
    from sweep_time import KINDS, read_spans, split_time

    from memrl.learning.timeline import Span, Timeline

    first = Timeline(
        [Span("load", "pack", 1.0, 3.0), Span("start", "pack", 3.0, 6.0), Span("round", "pack", 6.0, 16.0)]
    )
    second = Timeline([Span("start", "pack", 17.0, 17.5), Span("round", "pack", 18.0, 20.0)])
    spans = read_spans([second.to_chrome_trace(), first.to_chrome_trace()])
    shares = split_time(spans, 20.0)
    assert list(shares) == list(KINDS)
    assert list(shares.values()) == pytest.approx([12.0, 0.5, 5.0, 2.5])


@pytest.mark.slow
def test_roofline_accounts_for_all_of_the_time(tmp_path):
    words = ("pack_sizes=1,2", "N=16", "group_size=4", "rounds=1", "block_s=0.05", "profile_s=1", "threads=1")
    tables = read_tables(tmp_path, "roofline.py", *words)
    one, two = tables["matrix-multiply rate reached"]
    assert 1.5 < two["MFLOP needed"] / one["MFLOP needed"] < 2.5
    for row in (one, two):
        assert sum(row[f"% {part}"] for part in ("base", "adapters", "attention", "head")) == pytest.approx(100)
        assert row["GFLOP/s"] < row["mm GFLOP/s"]
    for row in tables["where the time goes"]:
        shares = {name: share for name, share in row.items() if name.startswith("% ")}
        assert sum(shares.values()) == pytest.approx(100)
        assert all(share > 0 for share in shares.values()), shares


def test_scaling_times_packs_and_the_launcher(tmp_path):
    words = ("part=launcher", "launch_cells=200", "curve_rows=3", "threads=1")
    (rows,) = read_tables(tmp_path, "scaling.py", *words).values()
    assert rows[-1]["s"] == pytest.approx(sum(row["s"] for row in rows[:-1]))


@pytest.mark.slow
def test_scaling_runs_every_axis(tmp_path):
    words = ("pack_size=2", "pack_sizes=1,2", "group_sizes=4,8", "Ns=16,64", "models=0.2m", "model_pack_sizes=1")
    quick = ("threads=1", "rounds=1", "block_s=0.05", "launch_cells=50")
    tables = read_tables(tmp_path, "scaling.py", *words, *quick)
    assert list(tables) == ["pack", "group", "N", "model", "startup", "launcher"]
    assert [row["what"] for row in tables["group"]] == ["group of 4", "group of 8"]
    assert all(row["peak GiB"] > 0.1 for row in tables["pack"])


@pytest.mark.slow
def test_gpu_runs_small_on_the_cpu(tmp_path):
    words = (
        "device=cpu",
        "model=0.2m",
        "pack_sizes=1,2",
        "group_size=4",
        "N=16",
        "rounds=1",
        "block_s=0.05",
        "threads=1",
    )
    (rows,) = read_tables(tmp_path, "gpu.py", *words).values()
    assert [row["pack"] for row in rows] == [1, 2]
    assert all(row["tokens/s, as episodes count them"] > row["tokens/s, distinct"] > 0 for row in rows)


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL (uv run --group benchmark)")


@pytest.mark.slow
@needs_trl
def test_versus_trl_runs_both_in_one_run(tmp_path):
    words = ("part=steady", "N=16", "group_sizes=4", "pack_sizes=1,2", "rounds=2", "block_s=0.1", "threads=1")
    ((trl, single, pack),) = read_tables(tmp_path, "versus_trl.py", *words).values()
    assert trl["who"] == "TRL, one policy"
    assert 0 < single["ratio"] < pack["ratio"]


@pytest.mark.slow
@needs_trl
@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_both_make_the_same_update_of_the_same_episodes(benchmarks):
    """One group's update by TRL equals memrl's, given the episodes that TRL sampled and the same starting adapter."""
    from trl_run import compare_one_update

    from memrl.config import TrainConfig

    assert compare_one_update(TrainConfig(N=4, group_size=16, learning_rate=1e-2, lora_rank=2)) < 1e-3


def test_soak_looks_at_what_processes_hold_and_tells_growth_from_none(benchmarks, tmp_path):
    import psutil
    import soak

    samples = soak.Samples()
    files = []
    for number in range(40):
        files.append((tmp_path / str(number)).open("w"))
        soak.look(samples, [psutil.Process()])
    for file in files:
        file.close()
    found = soak.describe(samples)
    assert found["handles"]["growth"] == pytest.approx(30, abs=3)
    assert abs(found["threads"]["growth"]) < 2
    assert found["MiB"]["first"] > 1


def test_neighbors_tells_rounding_from_another_path(benchmarks):
    import numpy as np
    from neighbors import Cell, compare

    line = np.linspace(0, 1, 5)
    expected = {name: Cell(line, 7) for name in "abcd"}
    found = {"a": Cell(line, 7), "b": Cell(line + 1e-6, 7), "c": Cell(line + 0.5, 9), "d": Cell(line[:4], None)}
    assert compare(expected, found) == {"same": 1, "rounded": 1, "forked": 2, "largest": 0.5, "other E50": 2}
