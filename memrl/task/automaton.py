"""The automaton of an answer: a state is what decides which tokens may follow.

Beginnings of answers that can go on alike share a state, so L independent symbols take L times the states of one, and
N^L answers are never listed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from memrl.task.answer_format import AnswerFormat


@dataclass(frozen=True, eq=False)
class AnswerAutomaton:
    """Which tokens may follow in an answer to one prompt; state 0 is the start, the last one the end.

    Every state comes before those that it leads to.

    Attributes:
        answer_format: what the tokens write.
        alphabet: token ids that occur in answers, ascending.
        child: the state that token alphabet[a] leads to, -1 where it is not allowed.
        digit: the digit of the symbol that this token completes, -1 where it completes none.
        steps_done: env_steps that are complete in a state.
        log2_answers: log2 of the number of ways to go on to a whole answer.
        depth: tokens of the longest answer.
        spans: letters (places in the alphabet) that write each digit: as the first symbol, and as any later one.
        stop: the letter of the stop token, where there is one.
    """

    answer_format: AnswerFormat
    alphabet: Int[np.ndarray, "letter"]
    child: Int[np.ndarray, "state letter"]
    digit: Int[np.ndarray, "state letter"]
    steps_done: Int[np.ndarray, "state"]
    log2_answers: Float[np.ndarray, "state"]
    depth: int
    spans: tuple[list[list[int]], list[list[int]]]
    stop: int | None

    @property
    def num_states(self) -> int:
        """States, start and end included."""
        return len(self.child)

    def encode(self, digits: Sequence[int] | Int[np.ndarray, "env_step"]) -> Int[np.ndarray, "place"]:
        """The answer that writes these digits, as letters (places in the alphabet), stop token included."""
        written = [s for step, digit in enumerate(digits) for s in self.spans[step > 0][int(digit)]]
        return np.array(written if self.stop is None else [*written, self.stop])

    def tokens(self, digits: Sequence[int] | Int[np.ndarray, "env_step"]) -> Int[np.ndarray, "place"]:
        """The same answer as token ids."""
        return self.alphabet[self.encode(digits)]

    def encode_many(self, digits: Int[np.ndarray, "answer env_step"]) -> Int[np.ndarray, "answer place"]:
        """The same of many answers at once, each padded with -1 to the longest answer there is."""
        spelled = [np.array(pad_rows(spans)) for spans in self.spans if spans]
        symbols = [spelled[step > 0][digits[:, step]] for step in range(digits.shape[1])]
        if self.stop is not None:
            symbols.append(np.full((len(digits), 1), self.stop))
        written = np.concatenate(symbols, axis=1)
        row, place = np.nonzero(written >= 0)
        letters = np.full((len(digits), self.depth), -1, dtype=np.int64)
        start = np.searchsorted(row, np.arange(len(digits)))
        letters[row, np.arange(len(row)) - start[row]] = written[row, place]
        return letters

    def follow(self, letters: Int[np.ndarray, "place"]) -> Int[np.ndarray, "place"]:
        """The states after each of an answer's letters."""
        states, state = [], 0
        for letter in letters:
            state = int(self.child[state, letter])
            states.append(state)
        return np.array(states)

    def uniform_log2(self) -> Float[np.ndarray, "state letter"]:
        """log2 of the exact next-token distribution of a uniform secret, -inf where not allowed."""
        return np.where(self.child >= 0, self.log2_answers[self.child] - self.log2_answers[:, None], -np.inf)


@dataclass(frozen=True)
class _Symbol:
    """The tokens of one symbol as a trie; its nodes become states.

    Attributes:
        inner: the node that a token leads to, -1 where it leads to none.
        digit: the digit that a token completes, -1 where it completes none.
        below: digits below each node.
        above_last: whether the last digit is below a node.
        lengths: tokens of each digit.
    """

    inner: Int[np.ndarray, "node letter"]
    digit: Int[np.ndarray, "node letter"]
    below: Int[np.ndarray, "node"]
    above_last: Bool[np.ndarray, "node"]
    lengths: list[int]


@dataclass
class _Place:
    """The states in which one symbol is written: freely, or no higher than the last answer goes.

    Attributes:
        env_step: the env_step of the symbol.
        symbol: the digits that are allowed.
        free: where any digit leads but the last one that is allowed; None is the end of the answer.
        tight: where that last digit leads.
        log2_answers: log2 of the number of answers below each state.
        depth: tokens of the longest way to the end.
        start: the number of the first state.
    """

    env_step: int
    symbol: _Symbol
    free: "_Place | None"
    tight: "_Place | None"
    log2_answers: Float[np.ndarray, "node"]
    depth: int
    start: int = 0


def build_automaton(
    answer_format: AnswerFormat,
    first: Sequence[Sequence[int]],
    later: Sequence[Sequence[int]] = (),
    stop: int | None = None,
) -> AnswerAutomaton:
    """Builds the automaton of all answers.

    Args:
        answer_format: how digits write an answer.
        first: token ids of each digit as the first symbol.
        later: token ids of each digit as any later symbol, its separator included.
        stop: the token that ends an answer, where there is one.

    Raises:
        ValueError: a symbol has no token, or is another one or its beginning (then no path is unambiguous).
    """
    ends = [] if stop is None else [stop]
    alphabet = np.unique([*ends, *(token for spans in (first, later) for span in spans for token in span)])
    letter_of = {int(token): place for place, token in enumerate(alphabet)}
    spans = _spell(first, letter_of), _spell(later, letter_of)
    places = _lay_places(answer_format, spans, [letter_of[token] for token in ends], len(alphabet))
    sizes = [len(place.symbol.inner) for place in places]
    for place, start in zip(places, np.cumsum([0, *sizes]).tolist(), strict=False):
        place.start = start
    end = sum(sizes)
    child, digit = np.full((2, end + 1, len(alphabet)), -1, dtype=np.int32)
    steps_done = np.repeat([*(place.env_step for place in places), answer_format.num_env_steps], [*sizes, 1])
    log2_answers = np.zeros(end + 1)
    for place, size in zip(places, sizes, strict=True):
        rows = slice(place.start, place.start + size)
        child[rows], digit[rows] = _connect(place, end), place.symbol.digit
        log2_answers[rows] = place.log2_answers
    letter = None if stop is None else letter_of[stop]
    return AnswerAutomaton(
        answer_format, alphabet, child, digit, steps_done, log2_answers, places[0].depth, spans, letter
    )


def pad_rows(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of one width, padded with -1.

    >>> pad_rows([[1, 2], [3]])
    [[1, 2], [3, -1]]
    """
    width = max(map(len, rows))
    return [[*row, *[-1] * (width - len(row))] for row in rows]


def _spell(spans: Sequence[Sequence[int]], letter_of: dict[int, int]) -> list[list[int]]:
    return [[letter_of[token] for token in span] for span in spans]


def _lay_places(
    answer_format: AnswerFormat, spans: Sequence[list[list[int]]], ends: list[int], num_letters: int
) -> list[_Place]:
    """The places of all symbols, each before those that it leads to."""
    radix, num_env_steps, last = answer_format.radix, answer_format.num_env_steps, answer_format.last_digits
    tries: dict[tuple[bool, bool, int], _Symbol] = {}
    free = tight = None
    places: list[_Place] = []
    for step in range(num_env_steps - 1, -1, -1):
        # Where the last answer's remaining digits are the largest there are, they bound nothing.
        bounded = tight is not free or last[step] < radix - 1
        here = []
        for digits, onward in [(radix, free), (last[step] + 1, tight)][: 1 + bounded]:
            key = step > 0, step == num_env_steps - 1, digits
            if key not in tries:
                allowed = [[*span, *(ends if key[1] else [])] for span in spans[key[0]][:digits]]
                tries[key] = _build_symbol(allowed, num_letters)
            here.append(_open_place(step, tries[key], free, onward))
        free, tight = here[0], here[-1]
        places += here
    return places[::-1] if free is tight else [*places[:-2:-1], *places[-3::-1]]


def _open_place(env_step: int, symbol: _Symbol, free: _Place | None, tight: _Place | None) -> _Place:
    """A place, with what is left to write from there."""
    (log2_free, depth), (log2_tight, depth_tight) = (
        (0.0, 0) if following is None else (float(following.log2_answers[0]), following.depth)
        for following in (free, tight)
    )
    with np.errstate(divide="ignore"):
        last = np.where(symbol.above_last, log2_tight, -math.inf)
        bounded = np.logaddexp2(np.log2(symbol.below - symbol.above_last) + log2_free, last)
        log2_answers = np.log2(symbol.below) + log2_free if free is tight else bounded
    *others, last_length = symbol.lengths
    longest = max([last_length + depth_tight, *(length + depth for length in others)])
    return _Place(env_step, symbol, free, tight, log2_answers, longest)


def _connect(place: _Place, end: int) -> Int[np.ndarray, "node letter"]:
    """The states that the tokens of a place lead to, -1 where there are none."""
    symbol = place.symbol
    free, tight = (end if following is None else following.start for following in (place.free, place.tight))
    following = np.where(symbol.digit == len(symbol.lengths) - 1, tight, free)
    inner = np.where(symbol.inner >= 0, symbol.inner + place.start, -1)
    return np.where(symbol.digit >= 0, following, inner)


def _build_symbol(spans: list[list[int]], num_letters: int) -> _Symbol:
    """Builds the trie of the tokens of one symbol, its digits in order."""
    inner: list[dict[int, int]] = [{}]
    digits: list[dict[int, int]] = [{}]
    below, above_last = [len(spans)], [True]
    for digit, span in enumerate(spans):
        if not span:
            raise ValueError(f"answers must have a token in every env_step, got none for {digit}")
        node = 0
        for token in span[:-1]:
            if token in digits[node]:
                raise ValueError("answers must not begin with another answer; end them with a stop token")
            following = inner[node].setdefault(token, len(inner))
            if following == len(inner):
                inner.append({})
                digits.append({})
                below.append(0)
                above_last.append(False)
            node = following
            below[node] += 1
            above_last[node] = digit == len(spans) - 1
        if span[-1] in digits[node] or span[-1] in inner[node]:
            raise ValueError(f"answers must each have a path of their own, got an ambiguous one for {digit}")
        digits[node][span[-1]] = digit
    tables = np.full((2, len(inner), num_letters), -1, dtype=np.int32)
    for table, rows in zip(tables, (inner, digits), strict=True):
        for node, row in enumerate(rows):
            table[node, list(row)] = list(row.values())
    return _Symbol(tables[0], tables[1], np.array(below), np.array(above_last), [len(span) for span in spans])
