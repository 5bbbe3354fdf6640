"""The no-leak check: honest ledgers pass, a planted leak in 5 % of the cells is caught."""

import numpy as np
import pandas as pd
import pytest
from table_rows import leak_report

from memrl.analysis.cells import CELL_COLUMNS
from memrl.analysis.curves import collect_curves
from memrl.analysis.leak import EVIDENCE_LIMIT_BITS, leak_curve

N, GROUP, UPDATES = 1024, 4, 60
SIGNAL = np.log2(N)


def simulate_ledger(seed, num_secrets=64, leaky=0, leak_update=1, leak_bits=6.0, prior_noise=0.05):
    """Binary cells at N = 1024 whose policy absorbs what it saw, over a few updates after its first hit."""
    stream = np.random.default_rng(seed)
    cells, curves = [], []
    for secret in range(num_secrets):
        hit = stream.geometric(1 - (1 - 1 / N) ** GROUP)
        prior = stream.normal(-(prior_noise**2) * np.log(2) / 2, prior_noise)
        for update in range(UPDATES):
            seen = SIGNAL if update >= hit else np.log2(N / (N - update * GROUP))
            share = np.clip((update - hit) / 8.0, 0.0, 1.0)
            absorbed = prior + share * (SIGNAL - 0.05 - prior)
            if secret < leaky and update >= leak_update:
                absorbed = max(absorbed, leak_bits)
            curves.append((f"{secret:04d}", update, update * GROUP, seen, absorbed))
        cells.append((f"{secret:04d}", secret))
    table = pd.DataFrame(curves, columns=["cell_id", "update", "episodes", "observed_bits", "absorbed_bits"])
    return table, complete_cells(pd.DataFrame(cells, columns=["cell_id", "seed"]))


def complete_cells(cells):
    """The other columns that a measured cell needs."""
    filled = {name: None for name in CELL_COLUMNS if name not in cells}
    return cells.assign(**filled).assign(
        agent="lora",
        channel="binary",
        N=N,
        e50=1,
        e90=1,
        e50_censored=False,
        e90_censored=False,
        absorbed_bits=1.0,
        episodes=9,
    )


def test_honest_cells_pass():
    verdicts = [leak_report(*simulate_ledger(seed)).iloc[0]["verdict"] for seed in range(12)]
    assert verdicts == ["no leak"] * 12


def test_evidence_keeps_its_error_rate_even_where_nothing_is_lost():
    # The hardest honest case: policies as good as the observer, d = 0 but for the prior's noise.
    stream, exceeded = np.random.default_rng(0), 0
    for _ in range(60):
        cells = pd.DataFrame({"cell_id": [f"{i:03d}" for i in range(64)], "seed": range(64)})
        noise = stream.normal(-0.09 * np.log(2) / 2, 0.3, size=64)
        table = cells.assign(update=0, episodes=0, observed_bits=0.0, absorbed_bits=noise)
        exceeded += leak_report(table, complete_cells(cells)).iloc[0]["evidence_bits"] > EVIDENCE_LIMIT_BITS
    assert exceeded <= 1


@pytest.mark.parametrize("num_secrets", [64, 128])
def test_a_leak_in_one_cell_of_twenty_is_caught(num_secrets):
    caught = [
        leak_report(*simulate_ledger(seed, num_secrets, leaky=-(-num_secrets // 20))).iloc[0] for seed in range(8)
    ]
    assert all(row["verdict"] == "leak" for row in caught)
    assert all(row["evidence_bits"] > EVIDENCE_LIMIT_BITS for row in caught)


def test_the_half_width_alone_would_miss_it():
    # Three leaking cells of 64 move the mean by at most sqrt(64 * 0.05 / 0.95) = 1.8 standard errors.
    row = leak_report(*simulate_ledger(0, leaky=3)).iloc[0]
    assert row["mean_difference_bits"] < row["half_width_bits"]
    assert row["verdict"] == "leak"


def test_a_small_leak_in_every_cell_is_caught_by_the_mean():
    table, cells = simulate_ledger(1, prior_noise=0.01)
    leaky = table.assign(absorbed_bits=table["absorbed_bits"] + 0.05 * (table["update"] == 0))
    row = leak_report(leaky, cells).iloc[0]
    assert row["mean_difference_bits"] > row["half_width_bits"]
    assert row["update"] == 0
    assert row["evidence_bits"] < EVIDENCE_LIMIT_BITS
    assert row["verdict"] == "leak"
    assert leak_report(table, cells).iloc[0]["verdict"] == "no leak"


def test_secrets_that_miss_what_the_prior_neglects_are_no_leak():
    # Of 64 answers two are neglected, by 1.6 bits; 16 secrets are none of them, and are all preferred by 0.03 bits.
    preference = np.log2((1 - 2 / 64 * 2**-1.6) / (1 - 2 / 64))
    divergence = 2 / 64 * 1.6 - (1 - 2 / 64) * preference
    table, cells = simulate_ledger(4, num_secrets=16, prior_noise=0.0)
    noise = np.random.default_rng(0).normal(0, 1e-4, size=len(table))
    table = table.assign(absorbed_bits=table["absorbed_bits"] + (preference + noise) * (table["update"] == 0))
    assert leak_report(table, cells).iloc[0]["verdict"] == "leak"
    measured = cells.assign(prior_kl_bits=divergence)
    assert leak_report(table, measured).iloc[0]["verdict"] == "no leak seen (few secrets)"
    # A prompt that tells a quarter of a bit of its secret is.
    told = table.assign(absorbed_bits=table["absorbed_bits"] + 0.25 * (table["update"] == 0))
    assert leak_report(told, measured).iloc[0]["verdict"] == "leak"


def test_finished_cells_keep_their_last_values():
    # One secret is absorbed and stops; the other, still honest, goes on. Without the first the mean would drop.
    rows = [
        ("0", 0, 0, 0.0, 0.0),
        ("0", 1, 4, 10.0, 9.0),
        ("1", 0, 0, 0.0, 0.0),
        ("1", 1, 4, 1.0, 0.0),
        ("1", 2, 8, 3.0, 1.0),
    ]
    table = pd.DataFrame(rows, columns=["cell_id", "update", "episodes", "observed_bits", "absorbed_bits"])
    cells = complete_cells(pd.DataFrame({"cell_id": ["0", "1"], "seed": [0, 1]}))
    curve = leak_curve(collect_curves(table, cells), cells)
    assert curve["mean_difference_bits"].tolist() == [0.0, -1.0, -1.5]
    assert curve["num_secrets"].tolist() == [2, 2, 2]


def test_cells_of_one_secret_count_once():
    table, cells = simulate_ledger(2, num_secrets=16)
    copies = [table.assign(cell_id=table["cell_id"] + suffix) for suffix in "abcd"]
    more = pd.concat([cells.assign(cell_id=cells["cell_id"] + suffix) for suffix in "abcd"], ignore_index=True)
    once, often = leak_report(table, cells).iloc[0], leak_report(pd.concat(copies), more).iloc[0]
    assert often["num_cells"] == 4 * once["num_cells"]
    for name in ("num_secrets", "mean_difference_bits", "half_width_bits", "evidence_bits"):
        assert often[name] == pytest.approx(once[name])
    assert once["verdict"] == "no leak seen (few secrets)"


def test_channels_without_an_observer_are_named():
    table, cells = simulate_ledger(3, num_secrets=4)
    row = leak_report(table.assign(observed_bits=np.nan), cells).iloc[0]
    assert row["verdict"] == "not observed"


def test_no_cells_give_no_rows():
    table, cells = simulate_ledger(3, num_secrets=4)
    assert leak_report(table, cells.assign(agent="greedy")).empty
