"""The automaton of answers, against the plain list of all answers of small formats."""

import math
import time
from itertools import accumulate, islice, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memrl.task.answer_format import AnswerFormat, integer_format
from memrl.task.answer_tree import expand_automaton
from memrl.task.automaton import build_automaton

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
def answer_formats(draw):
    kind, separator = draw(st.sampled_from(["single_step", "multi_step", "sequence"])), draw(st.sampled_from(["", " "]))
    if kind != "sequence":
        return integer_format(draw(st.integers(2, 70)), kind, separator)
    radix, length = draw(st.sampled_from([(2, 6), (3, 4), (5, 2), (7, 2), (11, 2), (4, 1)]))
    num_answers = draw(st.integers(max(1, radix ** (length - 1)), radix**length))
    return AnswerFormat(radix, length, num_answers, separator)


@st.composite
def tokenized_formats(draw):
    """A format under a made-up tokenizer: its automaton, the tokens of its symbols, and the text of each token id."""
    answer_format = draw(answer_formats())
    merged = draw(st.sets(st.text("0123456789", min_size=2, max_size=3), max_size=8))
    pieces = ["", *"0123456789 ", *sorted(merged)]
    id_of = dict(zip(pieces, draw(st.permutations(range(100, 100 + len(pieces)))), strict=True))

    def encode(text):
        return [id_of[piece] for piece in cut_greedily(text, merged)]

    texts = [answer_format.symbol_text(digit) for digit in range(answer_format.radix)]
    first, later = [encode(t) for t in texts], [encode(answer_format.separator + t) for t in texts]
    stop = id_of[""] if answer_format.ends_with_stop else None
    automaton = build_automaton(answer_format, first, later if answer_format.num_env_steps > 1 else [], stop)
    return answer_format, automaton, list_answers(answer_format, first, later, stop), {v: k for k, v in id_of.items()}


def list_answers(answer_format, first, later, stop):
    """Every answer as the tokens of its env_steps, by brute force, in lexicographic order of its digits."""
    vectors = product(range(answer_format.radix), repeat=answer_format.num_env_steps)
    answers = []
    for digits in islice(vectors, answer_format.num_answers):
        steps = [list((later if step else first)[digit]) for step, digit in enumerate(digits)]
        if stop is not None:
            steps[-1].append(stop)
        answers.append((digits, steps))
    return answers


def flatten(steps):
    return tuple(token for step in steps for token in step)


def list_paths(automaton):
    """Every way from the start to the end, as (tokens, digits completed on the way)."""
    pending: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [(0, (), ())]
    paths = []
    while pending:
        state, tokens, digits = pending.pop()
        if state == automaton.num_states - 1:
            paths.append((tokens, digits))
            continue
        for symbol in np.flatnonzero(automaton.child[state] >= 0):
            written = automaton.digit[state, symbol]
            more = () if written < 0 else (int(written),)
            token = int(automaton.alphabet[symbol])
            pending.append((int(automaton.child[state, symbol]), (*tokens, token), digits + more))
    return paths


@settings(max_examples=60)
@given(tokenized_formats())
def test_the_paths_are_the_answers_and_say_their_digits(tokenized):
    _, automaton, answers, _ = tokenized
    assert sorted(list_paths(automaton)) == sorted((flatten(steps), digits) for digits, steps in answers)


@settings(max_examples=60)
@given(tokenized_formats())
def test_encoding_writes_the_text_of_every_answer(tokenized):
    answer_format, automaton, answers, text_of = tokenized
    for digits, steps in answers:
        tokens = automaton.tokens(digits).tolist()
        assert tokens == list(flatten(steps))
        assert "".join(text_of[token] for token in tokens) == "".join(answer_format.spans(digits))
        states = automaton.follow(automaton.encode(digits))
        ends = list(accumulate(map(len, steps)))
        assert automaton.steps_done[states].tolist() == [sum(e <= i + 1 for e in ends) for i in range(len(tokens))]
    assert automaton.depth == max(len(flatten(steps)) for _, steps in answers)


@settings(max_examples=60)
@given(tokenized_formats())
def test_answers_are_counted_and_a_uniform_secret_makes_all_equally_likely(tokenized):
    _, automaton, answers, _ = tokenized
    below = {}
    for digits, _ in answers:
        symbols = automaton.encode(digits)
        for length, state in enumerate([0, *automaton.follow(symbols)]):
            below.setdefault(int(state), set()).add(tuple(symbols[length:].tolist()))
    assert len(below) == automaton.num_states
    for state, endings in below.items():
        assert automaton.log2_answers[state] == pytest.approx(math.log2(len(endings)), abs=1e-12)
    log2 = automaton.uniform_log2()
    assert (np.isneginf(log2) == (automaton.child < 0)).all()
    for digits, _ in answers:
        symbols = automaton.encode(digits)
        before = [0, *automaton.follow(symbols)[:-1]]
        assert log2[before, symbols].sum() == pytest.approx(-math.log2(len(answers)), abs=1e-9)


@settings(max_examples=60)
@given(tokenized_formats())
def test_the_tree_lists_every_beginning_once_and_knows_its_state(tokenized):
    answer_format, automaton, answers, _ = tokenized
    tree = expand_automaton(automaton, answer_format.list_answers())
    beginnings = {flatten(steps)[:n] for _, steps in answers for n in range(len(flatten(steps)) + 1)}
    assert len(tree.parent) == len(beginnings)
    for value, (digits, steps) in enumerate(answers):
        assert answer_format.digits(value).tolist() == list(digits)
        path = tree.paths[value][tree.paths[value] >= 0]
        assert tree.token[path].tolist() == list(flatten(steps))
        assert tree.parent[path].tolist() == [0, *path[:-1]]
        assert tree.depth[path].tolist() == list(range(1, len(path) + 1))
        assert tree.state[path].tolist() == automaton.follow(automaton.encode(digits)).tolist()
        assert tree.is_leaf[path].tolist() == [False] * (len(path) - 1) + [True]
        for depth, node in enumerate(path, start=1):
            assert tree.ancestors[node, : depth + 1].tolist() == [0, *path[:depth]]
            assert (tree.ancestors[node, depth + 1 :] == -1).all()


def test_worked_example():
    """0 .. 2 in binary, the second bit preceded by a separator: 11 is no answer."""
    automaton = build_automaton(integer_format(3, "multi_step", " "), [[5], [6]], [[7, 5], [7, 6]])
    assert automaton.alphabet.tolist() == [5, 6, 7]
    # The start, after 1, after 1 and the separator, after 0, after 0 and the separator, the end.
    assert automaton.child.tolist() == [[3, 1, -1], [-1, -1, 2], [5, -1, -1], [-1, -1, 4], [5, 5, -1], [-1] * 3]
    assert automaton.digit.tolist() == [[0, 1, -1], [-1] * 3, [0, -1, -1], [-1] * 3, [0, 1, -1], [-1] * 3]
    assert automaton.steps_done.tolist() == [0, 1, 1, 1, 1, 2]
    np.testing.assert_allclose(np.exp2(automaton.log2_answers), [3, 1, 1, 2, 2, 1])


@pytest.mark.parametrize(("radix", "length"), [(2, 1024), (16, 256), (1024, 102)])
def test_long_sequences_take_the_states_of_their_symbols_and_no_time(radix, length):
    answer_format = AnswerFormat(radix, length, radix**length, " ")
    first = [[int(d) for d in answer_format.symbol_text(digit)] for digit in range(radix)]
    start = time.perf_counter()
    automaton = build_automaton(answer_format, first, [[10, *span] for span in first])
    assert time.perf_counter() - start < 2
    nodes = len({tuple(span[:n]) for span in first for n in range(len(span))})
    assert automaton.num_states == nodes + (length - 1) * (nodes + 1) + 1
    assert automaton.depth == length * (len(first[0]) + 1) - 1
    assert automaton.log2_answers[0] == pytest.approx(length * math.log2(radix))
    digits = np.random.default_rng(0).integers(radix, size=length)
    symbols = automaton.encode(digits)
    before = [0, *automaton.follow(symbols)]
    assert before[-1] == automaton.num_states - 1
    written = automaton.digit[before[:-1], symbols]
    assert written[written >= 0].tolist() == digits.tolist()


@pytest.mark.parametrize(
    ("first", "later", "message"),
    [
        ([[1], [1]], [], "an ambiguous one for 1"),
        ([[1], [2]], [[1, 2], [1, 2]], "an ambiguous one for 1"),
        ([[1, 2], [1]], [], "an ambiguous one for 1"),
        ([[1], [1, 2]], [], "answers must not begin with another answer"),
        ([[1], []], [], "answers must have a token in every env_step, got none for 1"),
        ([[1], [2]], [[], [2]], "answers must have a token in every env_step, got none for 0"),
    ],
)
def test_refuses_symbols_that_are_not_told_apart(first, later, message):
    with pytest.raises(ValueError, match=message):
        build_automaton(AnswerFormat(2, 1 + bool(later), 4 if later else 2), first, later)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=2, max_size=6))
def test_symbols_are_refused_exactly_where_one_begins_another(spans):
    ambiguous = any(b[: len(a)] == a for i, a in enumerate(spans) for j, b in enumerate(spans) if i != j)
    answer_format = AnswerFormat(len(spans), 1, len(spans))
    if ambiguous:
        with pytest.raises(ValueError, match="answers must"):
            build_automaton(answer_format, spans)
    else:
        assert len(list_paths(build_automaton(answer_format, spans))) == len(spans)
    # A stop token tells apart what merely begins alike.
    if len(set(spans)) == len(spans):
        assert len(list_paths(build_automaton(answer_format, spans, stop=STOP))) == len(spans)
