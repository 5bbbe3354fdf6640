import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.config import TrainConfig, shared_fields
from memrl.sweep.pack_memory import bound_pack_bytes, estimate_cell_bytes
from memrl.sweep.packing import choose_pack_size, estimate_updates, pack_cells
from memrl.sweep.race import name_condition

cells = st.builds(
    TrainConfig,
    N=st.sampled_from([4, 64, 1024]),
    seed=st.integers(0, 30),
    algorithm=st.sampled_from(["rl", "sft"]),
    env_type=st.sampled_from(["single_step", "multi_step"]),
    learning_rate=st.sampled_from([1e-3, 1e-2]),
    lora_rank=st.sampled_from([1, 8]),
    dtype=st.sampled_from(["float32", "float64"]),
    bit_separator=st.sampled_from(["", " "]),
    n_steps=st.sampled_from([5, 500]),
)


@given(st.lists(cells, max_size=40), st.integers(1, 12))
def test_packs_hold_every_cell_once_and_share_what_a_pass_shares(cells, pack_size):
    packs = pack_cells(cells, pack_size)
    packed = list(itertools.chain.from_iterable(packs))
    assert sorted(map(id, packed)) == sorted(map(id, cells))
    for pack in packs:
        assert 1 <= len(pack) <= pack_size
        assert len(set(map(shared_fields, pack))) == 1


@given(st.lists(cells, max_size=40, unique_by=lambda cell: cell.cell_id), st.randoms(use_true_random=False))
def test_packs_do_not_depend_on_the_order_of_cells_beyond_ties(cells, chance):
    shuffled = list(cells)
    chance.shuffle(shuffled)
    lengths = [[estimate_updates(cell) for cell in pack] for pack in pack_cells(cells, 7)]
    assert [[estimate_updates(cell) for cell in pack] for pack in pack_cells(shuffled, 7)] == lengths


def test_packs_are_the_same_for_the_same_cells():
    cells = [TrainConfig(N=N, seed=seed) for N in (4, 64) for seed in range(20)]
    assert pack_cells(cells, 16) == pack_cells(list(cells), 16)


def test_packs_of_one_base_model_are_of_almost_equal_size():
    cells = [TrainConfig(seed=seed) for seed in range(130)]
    assert sorted(map(len, pack_cells(cells, 128))) == [65, 65]


def test_seeds_of_one_setting_stay_together_where_they_fit():
    cells = [
        TrainConfig(N=N, seed=seed, learning_rate=rate) for seed in range(8) for N in (4, 1024) for rate in (1e-4, 1e-2)
    ]
    random.Random(0).shuffle(cells)
    for pack in pack_cells(cells, 8):
        assert len({(cell.N, cell.learning_rate) for cell in pack}) == 1
        assert sorted(cell.seed for cell in pack) == list(range(8))


def test_the_pack_that_takes_longest_starts_first():
    cells = [TrainConfig(N=4, algorithm="sft", learning_rate=1e-1, seed=s) for s in range(4)]
    cells += [TrainConfig(N=4096, learning_rate=1e-4, seed=s) for s in range(4)]
    packs = pack_cells(cells, 4)
    assert [pack[0].N for pack in packs] == [4096, 4]


def test_many_packs_are_spread_and_the_last_ones_go_by_length():
    cells = [TrainConfig(N=64, learning_rate=1e-2 / (1 + rate), seed=s) for rate in range(32) for s in range(4)]
    packs = pack_cells(cells, 4)
    lengths = [estimate_updates(pack[0]) for pack in packs]
    assert lengths[0] == max(lengths)
    assert sorted(lengths[-8:], reverse=True) == lengths[-8:]
    whole = sum(lengths) / len(lengths)
    for start in (0, 8, 16):
        assert sum(lengths[start : start + 8]) / 8 == pytest.approx(whole, rel=0.2)


def test_an_estimate_never_exceeds_the_budget():
    assert estimate_updates(TrainConfig(N=4096, n_steps=10)) == 10
    assert estimate_updates(TrainConfig(N=4096, max_episodes=64)) == 2


def test_every_trial_gets_a_pack():
    assert [choose_pack_size(n, 4) for n in (1, 4, 5, 10_000)] == [1, 1, 2, 128]


def test_cells_that_take_much_memory_are_of_smaller_packs():
    light, heavy = ([TrainConfig(N=N, seed=seed, group_size=8) for seed in range(64)] for N in (4, 1 << 16))
    room = 64 * estimate_cell_bytes(heavy[0]) / 4
    packs = pack_cells([*light, *heavy], 128, room)
    assert sum(map(len, packs)) == 128
    assert max(sum(map(estimate_cell_bytes, pack)) for pack in packs) < 1.1 * room
    assert len(packs) <= 6, "those that take little go together"


def test_packs_are_as_ever_where_memory_is_plenty():
    cells = [TrainConfig(N=N, seed=seed) for N in (4, 64, 1024) for seed in range(77)]
    assert pack_cells(cells, 32, 1e12) == pack_cells(cells, 32, math.inf)


def test_a_cell_too_large_for_all_memory_is_a_pack_alone():
    assert [len(pack) for pack in pack_cells([TrainConfig(seed=seed) for seed in range(3)], 128, 1.0)] == [1, 1, 1]


def test_the_memory_of_a_model_that_is_not_here_is_not_guessed():
    assert estimate_cell_bytes(TrainConfig(model="Qwen/Qwen3-8B")) == 0


def test_trials_on_other_machines_take_no_memory_of_this_one(monkeypatch):
    monkeypatch.setattr("memrl.sweep.pack_memory.count_local_memory", lambda: 16e9)
    monkeypatch.setattr("memrl.sweep.pack_memory.count_local_cpus", lambda: 4)
    assert [bound_pack_bytes(*of) for of in [(1, 1), (4, 1), (256, 1), (256, 2), (8, 64)]] == [8e9, 2e9, 2e9, 4e9, 8e9]


@pytest.mark.parametrize("pack_size", [1, 5, 12, 100])
def test_conditions_that_are_to_stay_whole_train_in_one_pack_each(pack_size):
    cells = [
        TrainConfig(N=N, seed=seed, learning_rate=rate, algorithm=algorithm)
        for seed in range(3)
        for N in (4, 1024)
        for rate in (1e-4, 1e-2)
        for algorithm in ("rl", "sft")
    ]
    random.Random(0).shuffle(cells)
    packs = pack_cells(cells, pack_size, whole=name_condition)
    assert sorted(cell.cell_id for pack in packs for cell in pack) == sorted(cell.cell_id for cell in cells)
    conditions = [set(map(name_condition, pack)) for pack in packs]
    assert sum(map(len, conditions)) == len(set().union(*conditions)) == 4
    for pack, names in zip(packs, conditions, strict=True):
        assert len(pack) <= pack_size or len(names) == 1


def test_a_condition_that_memory_does_not_hold_is_cut():
    cells = [TrainConfig(seed=seed) for seed in range(8)]
    room = 4 * estimate_cell_bytes(cells[0])
    assert [len(pack) for pack in pack_cells(cells, 8, room, whole=name_condition)] == [4, 4]
