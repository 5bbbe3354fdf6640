"""The trie of all answers, against walks and counts over the plain list of answers."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.task.prompt import answer_steps
from memrl.task.trie import build_trie

STOP = 99


def cut_greedily(text, vocabulary):
    """Longest match first, as a tokenizer with merged digits would; characters are always tokens."""
    tokens = []
    while text:
        length = max(n for n in range(1, len(text) + 1) if n == 1 or text[:n] in vocabulary)
        tokens.append(text[:length])
        text = text[length:]
    return tokens


@st.composite
def tokenized_answers(draw):
    """All answers of a task under a made-up tokenizer, and the text of each token id."""
    N, env_type = draw(st.integers(2, 70)), draw(st.sampled_from(["single_step", "multi_step"]))
    separator = draw(st.sampled_from(["", " "])) if env_type == "multi_step" else ""
    merged = draw(st.sets(st.text("0123456789", min_size=2, max_size=3), max_size=8))
    pieces = ["", *"0123456789 ", *sorted(merged)]
    ids = draw(st.permutations(range(100, 100 + len(pieces))))
    id_of = dict(zip(pieces, ids, strict=True))
    answers = []
    for guess in range(N):
        steps = [
            [id_of[piece] for piece in cut_greedily(step, merged)]
            for step in answer_steps(guess, N, env_type, separator)
        ]
        if env_type == "single_step":
            steps[-1].append(id_of[""])
        answers.append(steps)
    texts = ["".join(answer_steps(guess, N, env_type, separator)) for guess in range(N)]
    return answers, texts, {token: piece for piece, token in id_of.items()}


def flatten(answer):
    return tuple(token for step in answer for token in step)


def collect_prefixes(answers):
    """Every beginning of an answer, the empty one included, with the answers that begin so."""
    below = {(): list(range(len(answers)))}
    for value, answer in enumerate(map(flatten, answers)):
        for length in range(1, len(answer) + 1):
            below.setdefault(answer[:length], []).append(value)
    return below


def walk(trie, tokens):
    node = 0
    for token in tokens:
        symbol = np.flatnonzero(trie.alphabet == token)
        node = int(trie.child[node, symbol[0]])
    return node


@settings(max_examples=50)
@given(tokenized_answers())
def test_every_path_spells_its_answer(tokenized):
    answers, texts, text_of = tokenized
    trie = build_trie(answers)
    for value, answer in enumerate(answers):
        tokens = flatten(answer)
        path = trie.paths[value]
        assert path[: len(tokens)].tolist() == [walk(trie, tokens[:n]) for n in range(1, len(tokens) + 1)]
        assert (path[len(tokens) :] == -1).all()
        assert trie.answer[path[len(tokens) - 1]] == value
        incoming = [
            trie.alphabet[trie.child[before] == node].item()
            for before, node in zip([0, *path[: len(tokens) - 1]], path[: len(tokens)], strict=True)
        ]
        assert "".join(text_of[token] for token in incoming) == texts[value]


@settings(max_examples=50)
@given(tokenized_answers())
def test_nodes_are_the_distinct_beginnings(tokenized):
    answers, _, _ = tokenized
    trie = build_trie(answers)
    below = collect_prefixes(answers)
    assert trie.num_nodes == len(below)
    assert (trie.child >= 0).sum() == len(below) - 1
    for prefix, values in below.items():
        node = walk(trie, prefix)
        assert trie.num_answers[node] == len(values)
        assert trie.prefix[node] == min(values)
        leaf = len(values) == 1 and flatten(answers[values[0]]) == prefix
        assert trie.is_leaf(np.array([node])).tolist() == [leaf]
        assert trie.answer[node] == (values[0] if leaf else -1)


@settings(max_examples=50)
@given(tokenized_answers())
def test_env_steps_are_counted_along_the_path(tokenized):
    answers, _, _ = tokenized
    trie = build_trie(answers)
    assert (trie.env_step[0], trie.steps_done[0]) == (-1, 0)
    for value, steps in enumerate(answers):
        path = trie.paths[value][: len(flatten(steps))]
        ends = list(accumulate(map(len, steps)))
        assert trie.env_step[path].tolist() == [t for t, step in enumerate(steps) for _ in step]
        assert trie.steps_done[path].tolist() == [sum(end <= i + 1 for end in ends) for i in range(len(path))]
    assert trie.depth == max(len(flatten(steps)) for steps in answers)


@settings(max_examples=50)
@given(tokenized_answers())
def test_uniform_secret_makes_every_answer_equally_likely(tokenized):
    answers, _, _ = tokenized
    trie = build_trie(answers)
    log2 = trie.uniform_log2()
    inner = ~trie.is_leaf(np.arange(trie.num_nodes))
    np.testing.assert_allclose(np.exp2(log2[inner]).sum(axis=1), 1.0, rtol=1e-12)
    assert np.isneginf(log2[~inner]).all()
    assert (np.isneginf(log2) == (trie.child < 0)).all()
    for path in trie.paths:
        nodes = [0, *path[path >= 0]]
        total = sum(log2[before, trie.child[before] == node].item() for before, node in pairwise(nodes))
        assert total == pytest.approx(-np.log2(len(answers)), abs=1e-9)


def test_worked_example():
    """0, 1 and 10 in decimal, each ended by a stop token."""
    trie = build_trie([[[5, STOP]], [[6, STOP]], [[6, 5, STOP]]])
    assert trie.alphabet.tolist() == [5, 6, STOP]
    assert trie.child.tolist() == [[1, 3, -1], [-1, -1, 2], [-1] * 3, [5, -1, 4], [-1] * 3, [-1, -1, 6], [-1] * 3]
    assert trie.num_answers.tolist() == [3, 1, 1, 2, 1, 1, 1]
    assert trie.prefix.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert trie.steps_done.tolist() == [0, 0, 1, 0, 1, 0, 1]
    assert trie.paths.tolist() == [[1, 2, -1], [3, 4, -1], [3, 5, 6]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([[[1]], [[2]], [[1]]], "an ambiguous one for 2"),
        ([[[1], [2]], [[1]]], "an ambiguous one for 1"),
        ([[[1]], [[1], [2]]], "answers must not begin with another answer"),
        ([[[1, 2]], [[1]]], "answers must cut into env_steps alike"),
        ([[[1]], [[1, 2]]], "answers must cut into env_steps alike"),
        ([[[1]], []], "answers must have a token in every env_step, got none for 1"),
        ([[[1]], [[]]], "answers must have a token in every env_step, got none for 1"),
        ([[[1], [2]], [[1], [], [3]]], "answers must have a token in every env_step, got none for 1"),
        ([[[1], [2]], [[1, 3]]], "answers must cut into env_steps alike"),
        ([[[1, 3]], [[1], [2]]], "answers must cut into env_steps alike"),
    ],
)
def test_refuses_answers_that_are_not_told_apart(answers, message):
    with pytest.raises(ValueError, match=message):
        build_trie(answers)


@settings(max_examples=50)
@given(tokenized_answers(), st.data())
def test_refuses_any_answer_cut_short_or_repeated(tokenized, data):
    answers, _, _ = tokenized
    chosen = data.draw(st.sampled_from(answers))
    tokens = flatten(chosen)
    cut = data.draw(st.integers(1, len(tokens)))
    remaining, shortened = cut, []
    for step in chosen:
        if remaining > 0:
            shortened.append(step[:remaining])
        remaining -= len(step)
    place = data.draw(st.integers(0, len(answers)))
    with pytest.raises(ValueError, match="answers must"):
        build_trie([*answers[:place], shortened, *answers[place:]])
