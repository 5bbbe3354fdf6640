"""Entropies against sums written out, Blahut-Arimoto against closed forms, and the inequalities that must hold."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from information import blahut_arimoto, mutual_information_bits

from memrl.theory.information import (
    binary_entropy_bits,
    count_log2_count,
    entropy_bits,
    kl_bits,
    row_entropies_bits,
)


def written_out_entropy(p):
    return -sum(x * math.log2(x) for x in p if x > 0)


def distributions(shape):
    positive = arrays(np.float64, shape, elements=st.floats(0, 1).filter(lambda x: x == 0 or x > 1e-6))
    return positive.filter(lambda a: (a.sum(axis=-1) > 0).all()).map(lambda a: a / a.sum(axis=-1, keepdims=True))


def joints(shape):
    return distributions((math.prod(shape),)).map(lambda p: p.reshape(shape))


@given(distributions((6,)))
def test_entropy_is_the_sum_written_out_and_at_most_log2_of_the_outcomes(p):
    assert float(entropy_bits(p)) == pytest.approx(written_out_entropy(p), abs=1e-12)
    assert -1e-12 <= entropy_bits(p) <= math.log2(6) + 1e-12


@pytest.mark.parametrize(("p", "bits"), [(0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (0.11, 0.4999158), (1 / 64, 0.1161)])
def test_binary_entropy_at_known_points(p, bits):
    assert float(binary_entropy_bits(p)) == pytest.approx(bits, abs=5e-5)


@given(distributions((5,)), distributions((5,)))
def test_divergence_is_cross_entropy_minus_entropy_and_never_negative(p, q):
    expected = sum(a * math.log2(a / b) if b > 0 else math.inf for a, b in zip(p, q, strict=True) if a > 0)
    assert float(kl_bits(p, q)) == pytest.approx(expected, abs=1e-9)
    assert kl_bits(p, q) >= -1e-12
    assert float(kl_bits(p, p)) == pytest.approx(0.0, abs=1e-12)


@given(joints((4, 5)))
def test_mutual_information_is_a_divergence_and_at_most_either_entropy(joint):
    independent = joint.sum(axis=1)[:, None] * joint.sum(axis=0)[None, :]
    bits = mutual_information_bits(joint)
    assert bits == pytest.approx(float(kl_bits(joint.ravel(), independent.ravel())), abs=1e-9)
    assert 0 <= bits <= min(entropy_bits(joint.sum(axis=0)), entropy_bits(joint.sum(axis=1))) + 1e-9


@given(joints((4, 5)), st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_data_processing_never_adds_information(joint, relabel):
    merged = np.zeros((4, 3))
    np.add.at(merged.T, relabel, joint.T)
    assert mutual_information_bits(merged) <= mutual_information_bits(joint) + 1e-9


@given(arrays(np.int64, (3, 12), elements=st.integers(-2, 4)))
def test_row_entropies_count_labels(labels):
    bits, distinct = row_entropies_bits(labels)
    for row, found, number in zip(labels.tolist(), bits, distinct, strict=True):
        counts = Counter(row)
        assert found == pytest.approx(written_out_entropy([c / 12 for c in counts.values()]), abs=1e-12)
        assert number == len(counts)


def test_count_log2_count_is_shared_and_cannot_be_changed():
    table = count_log2_count(8)
    assert table.tolist() == pytest.approx([0, 0] + [c * math.log2(c) for c in range(2, 9)])
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1.0


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3, 0.5])
def test_capacity_of_the_binary_symmetric_channel(error):
    capacity, inputs = blahut_arimoto(np.array([[1 - error, error], [error, 1 - error]]))
    assert capacity == pytest.approx(1 - float(binary_entropy_bits(error)), abs=1e-8)
    np.testing.assert_allclose(inputs, [0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("erased", [0.1, 0.5])
def test_capacity_of_the_erasure_channel(erased):
    capacity, _ = blahut_arimoto(np.array([[1 - erased, 0, erased], [0, 1 - erased, erased]]))
    assert capacity == pytest.approx(1 - erased, abs=1e-8)


def test_capacity_of_the_z_channel_as_published():
    # Cover and Thomas, problem 7.8: crossover 1/2, capacity log2 5 - 2 bits at P(X=1) = 2/5.
    capacity, inputs = blahut_arimoto(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert capacity == pytest.approx(math.log2(5) - 2, abs=1e-8)
    assert inputs[1] == pytest.approx(0.4, abs=1e-4)


@settings(max_examples=50)
@given(distributions((3, 4)), distributions((3,)))
def test_no_input_distribution_beats_the_capacity(transition, inputs):
    capacity, best = blahut_arimoto(transition, tolerance_bits=1e-6)
    assert mutual_information_bits(inputs[:, None] * transition) <= capacity + 1e-5
    assert mutual_information_bits(best[:, None] * transition) == pytest.approx(capacity, abs=1e-9)


def test_blahut_arimoto_refuses_what_is_no_channel_and_too_few_iterations():
    with pytest.raises(ValueError, match="transition must have rows that are distributions"):
        blahut_arimoto(np.array([[0.5, 0.4]]))
    with pytest.raises(ValueError, match="max_iterations must suffice"):
        blahut_arimoto(np.array([[1.0, 0.0], [0.5, 0.5]]), max_iterations=3)
