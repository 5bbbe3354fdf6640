"""Growth with the length of a sequence, on runs whose law is known."""

import numpy as np
import pandas as pd
import pytest

from memrl.analysis.cells import CELL_COLUMNS, measured_cells
from memrl.analysis.lengths import estimate_lengths, fit_growth, take_sequences
from memrl.analysis.objectives import join_distilled
from memrl.analysis.verdicts.judge import judge_hypotheses
from memrl.analysis.verdicts.lengths import judge_lengths
from memrl.config import TrainConfig

LENGTHS = (4, 8, 16, 32, 64)


def simulate(law, lengths=LENGTHS, num_seeds=32, budget=1e9, rate=1e-3, **fields):
    """Rows of runs that come to half of their bits after about law(L) episodes."""
    rows = []
    noise = np.random.default_rng(7).lognormal(0.0, 0.2, size=(len(lengths), num_seeds))
    for length, factors in zip(lengths, noise, strict=True):
        for seed, factor in enumerate(factors):
            task = {"env_type": "multi_step", "N": 2, "secret_length": length, "reward_type": "per_element"}
            cell = TrainConfig(**{**task, "learning_rate": rate, "seed": seed, **fields})
            episodes = law(length) * factor
            reached = episodes <= budget
            half = min(episodes, budget)
            rows.append(
                {
                    **dict.fromkeys(CELL_COLUMNS),
                    **{name: value for name, value in cell.identity().items() if name in CELL_COLUMNS},
                    **{"cell_id": cell.cell_id, "agent": "lora", "channel": cell.channel_name, "status": "memorized"},
                    **{"signal_bits": float(length), "capacity_nominal_bits": 1.0, "episodes": half, "updates": 1},
                    **{"absorbed_bits": 1.0, "e50": half, "e90": half, "e50_censored": True, "e90_censored": True},
                    **{"half_bits": half, "half_bits_censored": not reached},
                }
            )
    return pd.DataFrame(rows)


def linear(length):
    return 10.0 * length


def logarithmic(length):
    return 20.0 * np.log2(length)


def read(*tables):
    return join_distilled(measured_cells(pd.concat(tables, ignore_index=True)))


def verdicts_of(*tables):
    return {verdict.name: verdict for verdict in judge_lengths(read(*tables))}


def test_exponents_are_those_of_the_law_within_their_intervals():
    cells = take_sequences(read(simulate(linear, credit="episode")))
    keys, (value, lower, upper) = fit_growth(cells, ["sum"])
    assert lower < 1.0 < upper
    assert upper - lower < 0.2
    assert value == pytest.approx(1.0, abs=0.1)
    assert keys["secret_length"].tolist() == [8, 16, 32, 64]  # one batch may tell all of 4 bits
    cells = take_sequences(read(simulate(logarithmic)))
    assert fit_growth(cells, ["symbol"], in_log=True)[1][0] == pytest.approx(1.0, abs=0.2)


def test_a_sum_that_grows_linearly_and_rewards_per_step_that_do_not_support_both_claims():
    verdicts = verdicts_of(simulate(linear, credit="episode"), simulate(lambda length: 30.0))
    assert [verdicts[name].outcome for name in ("H6a", "H6b")] == ["supported", "supported"]
    assert "at 64 bits" in verdicts["H6a"].sentence


def test_the_other_way_round_refutes_both_claims():
    verdicts = verdicts_of(simulate(lambda length: 30.0, credit="episode"), simulate(linear))
    assert [verdicts[name].outcome for name in ("H6a", "H6b")] == ["refuted", "refuted"]


def test_a_length_that_nobody_gets_to_opens_the_interval_upwards_and_can_refute_but_not_support():
    flat_then_lost = simulate(lambda length: 30.0 if length < 64 else 1e5, budget=1e4)
    verdict = verdicts_of(flat_then_lost)["H6b"]
    assert np.isinf(verdict.upper)
    assert verdict.outcome != "supported"
    assert "not reached at 64" in verdict.sentence


def test_counts_of_right_symbols_are_a_sum_too_and_share_its_exponent_at_a_level_of_their_own():
    both = [simulate(linear, credit="episode"), simulate(lambda L: 90.0 * L, reward_type="element_count")]
    cells = take_sequences(read(*both))
    keys, (value, _, _) = fit_growth(cells, ["sum", "count"])
    assert len(keys) == 2 * (len(LENGTHS) - 1)
    assert value == pytest.approx(1.0, abs=0.1)
    assert verdicts_of(*both)["H6a"].outcome == "supported"


def test_usual_and_chosen_objective_stand_side_by_side_and_the_latter_is_chosen_on_other_secrets():
    usual = simulate(linear)
    better = simulate(lambda length: 2.0 * length, advantage="rejection", updates_per_batch=4)
    worse = simulate(lambda length: 50.0 * length, advantage="rejection", updates_per_batch=4, rate=1e-2)
    shown = simulate(lambda length: 3.0, algorithm="sft", lengths=(8, 16, 32))
    table = estimate_lengths(read(usual, better, worse, shown))
    medians = table.pivot_table(index="secret_length", columns=["line", "objective"], values="half_bits")
    assert medians.loc[64, ("symbol", "chosen")] == pytest.approx(128, rel=0.15)
    assert medians.loc[64, ("symbol", "usual")] == pytest.approx(640, rel=0.15)
    assert medians.loc[32, ("sft", "")] == pytest.approx(3, rel=0.15)
    assert table["held_out"].all()
    assert table[table["line"] == "sft"]["exponent"].abs().max() < 0.1


def test_tables_from_before_there_were_halves_reached_none_and_integers_have_no_length():
    older = simulate(linear).assign(half_bits=None, half_bits_censored=None)
    assert np.isinf(estimate_lengths(read(older))["half_bits"]).all()
    assert verdicts_of(older)["H6b"].outcome != "supported"
    integers = simulate(linear, lengths=(8,)).assign(secret_length=None)
    assert take_sequences(read(integers)).empty


def test_sequences_and_sft_beside_them_can_be_judged_at_all():
    cells = read(simulate(linear), simulate(linear, algorithm="sft"))
    known = (np.full(len(cells), 1.0), np.full(len(cells), 1.0))
    chosen = cells.assign(held_out=True, capacity_best_bits=1.0)
    assert {verdict.name for verdict in judge_hypotheses(cells, chosen, known)} >= {"H6b"}
