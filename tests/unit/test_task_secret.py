"""Secrets: uniform, independent across N and seed, and no formula of either."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, kstest

from memrl.task.secret import draw_secret, num_bits, to_bits

NUM_SEEDS = 8192
REJECTED = 1e-4
"""A p-value below this is no accident: the draws are fixed by their seeds, so a test either always or never fails."""


@cache
def draw_many(N):
    return np.array([draw_secret(N, seed)[0] for seed in range(NUM_SEEDS)])


def find_peak(secrets, N):
    """The highest peak of the spectra of exp(2πi j secret / N) over all j, in units of their mean.

    For independent uniform secrets a value x is passed with probability about (N-1) len(secrets) exp(-x). For an
    arithmetic formula such as (a seed + b) mod N one frequency holds all, and the peak is len(secrets).
    """
    waves = np.exp(2j * np.pi * np.arange(1, N)[:, None] * secrets / N)
    return (np.abs(np.fft.fft(waves, axis=1)) ** 2).max() / len(secrets)


def threshold_peak(N, num_secrets=NUM_SEEDS):
    return np.log((N - 1) * num_secrets / REJECTED)


@pytest.mark.parametrize("N", [2, 3, 10, 64, 100, 500])
def test_uniform_over_seeds(N):
    assert chisquare(np.bincount(draw_many(N), minlength=N)).pvalue > REJECTED


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_over_N(seed):
    sizes = np.arange(1000, 5000)
    fractions = [(draw_secret(int(N), seed)[0] + 0.5) / N for N in sizes]
    assert kstest(fractions, "uniform").pvalue > REJECTED


@pytest.mark.parametrize(("N", "other"), [(16, 17), (16, 32), (16, 64), (10, 100), (64, 65)])
def test_independent_across_N(N, other):
    """Scaled, and modulo N: a shared stream would show in the one or in the other."""
    small, large = draw_many(N), draw_many(other)
    for folded, size in ((large * N // other, N), (large % N, N)):
        table = np.zeros((N, size))
        np.add.at(table, (small, folded), 1)
        assert chi2_contingency(table).pvalue > REJECTED


@pytest.mark.parametrize("lag", [1, 2, 16, 1000])
def test_independent_across_seeds(lag):
    N = 16
    secrets = draw_many(N)
    table = np.zeros((N, N))
    np.add.at(table, (secrets[:-lag], secrets[lag:]), 1)
    assert chi2_contingency(table).pvalue > REJECTED
    differences = np.bincount((secrets[lag:] - secrets[:-lag]) % N, minlength=N)
    assert chisquare(differences).pvalue > REJECTED


@pytest.mark.parametrize("N", [2, 16, 64, 100])
def test_no_arithmetic_pattern_in_the_seed(N):
    assert find_peak(draw_many(N), N) < threshold_peak(N)


def test_an_arithmetic_pattern_would_show():
    seeds = np.arange(NUM_SEEDS)
    assert find_peak((37 * seeds + 11) % 64, 64) > 100 * threshold_peak(64)
    mostly_random = np.where(seeds % 4 == 0, (37 * seeds + 11) % 64, draw_many(64))
    assert find_peak(mostly_random, 64) > threshold_peak(64)


def test_stored_results_keep_their_secrets():
    """A cell_id stands for the secret that N and seed draw: other draws need another RESULT_VERSION."""
    assert [int(draw_secret(64, seed)[0]) for seed in range(8)] == [53, 26, 6, 47, 37, 53, 44, 58]
    assert [int(draw_secret(1000, seed)[0]) for seed in range(8)] == [930, 495, 296, 328, 995, 290, 437, 634]


@given(N=st.integers(2, 2**40), seed=st.integers(0, 2**70), length=st.integers(1, 9))
def test_a_secret_is_a_vector_in_range_and_repeatable(N, seed, length):
    secret = draw_secret(N, seed, length)
    assert secret.shape == (length,)
    assert secret.dtype == np.int64
    assert ((secret >= 0) & (secret < N)).all()
    assert (draw_secret(N, seed, length) == secret).all()


def test_symbols_of_one_secret_are_independent():
    secrets = np.array([draw_secret(8, seed, 2) for seed in range(NUM_SEEDS)])
    table = np.zeros((8, 8))
    np.add.at(table, tuple(secrets.T), 1)
    assert chi2_contingency(table).pvalue > REJECTED


@given(N=st.integers(2, 2**50))
def test_num_bits_is_the_least_that_writes_all(N):
    assert 2 ** (num_bits(N) - 1) < N <= 2 ** num_bits(N)


@given(values=st.lists(st.integers(0, 2**12 - 1), min_size=1), k=st.integers(12, 20))
def test_to_bits_is_python_s_binary(values, k):
    assert to_bits(np.array(values), k).tolist() == [[int(bit) for bit in format(value, f"0{k}b")] for value in values]
