"""Scaling exponents: known ones are recovered and covered, and an overhead is told from an exponent."""

import numpy as np
import pandas as pd
import pytest

from memrl.analysis.published import published_episodes
from memrl.analysis.resample import draw_weights
from memrl.analysis.scaling import compare_models, estimate_scaling, exponent_interval, fit_exponent
from memrl.analysis.survival import resample_medians

SIZES = np.array([16.0, 32, 64, 128, 256, 512])


def test_exact_power_law_gives_its_exponent():
    assert fit_exponent(SIZES, 3.0 * SIZES**1.4) == pytest.approx(1.4)


def test_published_exponent_is_reproduced():
    rows = published_episodes().query("channel == 'binary'")
    assert round(float(fit_exponent(rows["N"].to_numpy(float), rows["episodes"].to_numpy(float))), 2) == 0.88


def test_coverage_of_the_exponent_of_uniform_guessing():
    # Medians of geometric times grow as N ln 2 - 1/2, an exponent of 1 to within 1 %; 500 sweeps of 16 secrets.
    stream, truth = np.random.default_rng(11), float(fit_exponent(SIZES, np.ceil(np.log(2) / -np.log1p(-1 / SIZES))))
    weights, covered = draw_weights(16, 299), []
    for _ in range(500):
        times = stream.geometric(1 / SIZES[:, None], size=(len(SIZES), 16)).astype(float)
        lower, upper = exponent_interval(SIZES, resample_medians(times, np.zeros_like(times, dtype=bool), weights))
        covered.append(lower <= truth <= upper)
    assert 0.93 <= np.mean(covered) <= 0.975


@pytest.mark.parametrize(
    ("truth", "medians", "rejected"),
    [
        ("overhead", 60 + 1.2 * SIZES, "p_power"),
        ("exponent", 3.0 * SIZES**0.6, "p_overhead"),
        ("exponent", 0.4 * SIZES**1.5, "p_overhead"),
    ],
)
def test_overhead_and_exponent_are_told_apart(truth, medians, rejected):
    noise = np.exp(0.05 * np.random.default_rng(3).normal(size=len(SIZES)))
    found = compare_models(SIZES, medians * noise, np.full(len(SIZES), 0.05))
    assert found.conclusion == truth
    assert getattr(found, rejected) < 0.05
    assert (found.delta_aic > 0) == (truth == "exponent")


def test_overhead_is_recovered():
    found = compare_models(SIZES, 60 + 1.2 * SIZES, np.full(len(SIZES), 0.05))
    assert found.overhead == pytest.approx(60, rel=0.05)
    assert found.per_secret == pytest.approx(1.2, rel=0.05)


def test_a_line_through_the_origin_is_either():
    assert compare_models(SIZES, 0.7 * SIZES, np.full(len(SIZES), 0.05)).conclusion == "either"


@pytest.mark.parametrize(("medians", "p_value"), [(60 + 1.2 * SIZES, "p_overhead"), (3.0 * SIZES**0.6, "p_power")])
def test_p_value_of_the_true_model_is_calibrated(medians, p_value):
    stream = np.random.default_rng(8)
    small = [
        getattr(compare_models(SIZES, medians * np.exp(0.1 * stream.normal(size=6)), np.full(6, 0.1)), p_value) < 0.1
        for _ in range(300)
    ]
    assert np.mean(small) <= 0.15


def test_unreached_medians_are_left_out_and_counted():
    rows = []
    for N in (16, 64, 256, 1024):
        times = np.random.default_rng(N).geometric(1 / N, size=16)
        censored = times > 400
        for seed in range(16):
            rows.append(("lora", "binary", N, "embedded", seed, min(times[seed], 400), censored[seed], 4))
    columns = ["agent", "channel", "N", "model", "seed", "e50", "e50_censored", "batch_size"]
    found = estimate_scaling(pd.DataFrame(rows, columns=columns)).iloc[0]
    assert (found["num_N"], found["num_left_out"], found["largest_N"]) == (3, 1, 256)
    assert found["exponent_lower"] < 1.0 < found["exponent_upper"]


def test_what_does_not_grow_is_flat():
    rows = [("lora", "per_bit", N, "embedded", s, 60 + 4 * (s % 5), False, 4) for N in (16, 64, 256) for s in range(16)]
    columns = ["agent", "channel", "N", "model", "seed", "e50", "e50_censored", "batch_size"]
    assert estimate_scaling(pd.DataFrame(rows, columns=columns)).iloc[0]["conclusion"] == "flat"
