"""The answers to every prompt of a pack, as one table of states, and the path of each secret through it."""

from collections.abc import Sequence

import numpy as np

from memrl.task.automaton import AnswerAutomaton


class StateTable:
    """Distinct automata side by side: one numbering of states, one alphabet. It does not change as cells leave.

    Args:
        automata: the automata; equal ones may be given many times.

    Attributes:
        alphabet: token ids, int64 (A,).
        child: the state that a letter leads to, or -1; int32 (states, A).
        digit: the digit that this token completes, or -1; int32 (states, A).
        steps_done: env_steps that are complete in a state, int64 (states,).
        is_end: whether a state is a whole answer, bool (states,).
        depth: tokens of the longest answer.
    """

    def __init__(self, automata: Sequence[AnswerAutomaton]) -> None:
        distinct = list(dict.fromkeys(automata))
        self.alphabet = np.unique(np.concatenate([a.alphabet for a in distinct]))
        starts = np.cumsum([0, *(a.num_states for a in distinct)]).tolist()
        self.child, self.digit = np.full((2, starts[-1], len(self.alphabet)), -1, dtype=np.int32)
        for automaton, start in zip(distinct, starts, strict=False):
            rows, columns = slice(start, start + automaton.num_states), self.find_letters(automaton.alphabet)
            self.child[rows, columns] = np.where(automaton.child >= 0, automaton.child + start, -1)
            self.digit[rows, columns] = automaton.digit
        self.steps_done = np.concatenate([a.steps_done for a in distinct])
        self.is_end = np.zeros(starts[-1], dtype=bool)
        self.is_end[np.array(starts[1:]) - 1] = True
        self.depth = max(a.depth for a in distinct)
        self._start = dict(zip(distinct, starts, strict=False))

    def find_letters(self, tokens: np.ndarray) -> np.ndarray:
        """The places in the alphabet of some of its tokens."""
        return np.searchsorted(self.alphabet, tokens)

    def start(self, automaton: AnswerAutomaton) -> int:
        """The state in which an answer begins."""
        return self._start[automaton]

    def write(self, automaton: AnswerAutomaton, digits: np.ndarray) -> np.ndarray:
        """Answers as places in the alphabet, padded with -1: int64 (answers, depth).

        Args:
            automaton: one of these.
            digits: of each answer, (answers, env_steps).
        """
        own = automaton.encode_many(digits)
        letters = np.full((len(own), self.depth), -1, dtype=np.int64)
        letters[:, : automaton.depth] = np.where(own >= 0, self.find_letters(automaton.alphabet)[own], -1)
        return letters


class Forest:
    """The roots of a pack: prompts whose answers are walked, each with its secret and its cell.

    Args:
        states: a table with the answers of every cell.
        trees: the automaton of each cell, and the digits of the secret of each of its roots, (roots, env_steps).

    Attributes:
        states: the automata.
        num_cells: cells of the pack.
        root_cell: the cell of each root, ascending, int64 (roots,).
        root_state: the state in which each root's answers begin; int64 (roots,).
        secret_letters: places in the alphabet of the tokens of each secret, padded with -1; int64 (roots, depth).
    """

    def __init__(self, states: StateTable, trees: Sequence[tuple[AnswerAutomaton, np.ndarray]]) -> None:
        self.states, self.num_cells = states, len(trees)
        counts = [len(secrets) for _, secrets in trees]
        self.root_cell = np.repeat(np.arange(len(trees)), counts)
        self.root_state = np.repeat([states.start(automaton) for automaton, _ in trees], counts)
        self.secret_letters = np.concatenate([states.write(*tree) for tree in trees])

    @property
    def num_roots(self) -> int:
        """Roots of all cells."""
        return len(self.root_cell)
