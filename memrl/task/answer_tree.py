"""Answers of an automaton, listed as a tree of tokens."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from memrl.task.automaton import AnswerAutomaton


@dataclass(frozen=True)
class AnswerTree:
    """The distinct beginnings of answers; node 0 is the root, and answers lay their nodes in ascending order.

    Attributes:
        parent: the node before, -1 at the root.
        letter: place in the alphabet of the token that leads to a node, -1 at the root.
        token: that token's id, -1 at the root.
        depth: tokens from the root to a node.
        state: the node's state in the automaton.
        ancestors: the node at each depth on the path to a node, itself included, -1 below it.
        is_leaf: whether a node is a whole answer.
        paths: nodes from the first token to the leaf, by answer, padded with -1.
    """

    parent: Int[np.ndarray, "node"]
    letter: Int[np.ndarray, "node"]
    token: Int[np.ndarray, "node"]
    depth: Int[np.ndarray, "node"]
    state: Int[np.ndarray, "node"]
    ancestors: Int[np.ndarray, "node ancestor"]
    is_leaf: Bool[np.ndarray, "node"]
    paths: Int[np.ndarray, "answer place"]

    def inner_nodes(self, answers: Int[np.ndarray, "answer"]) -> Int[np.ndarray, "inner_node"]:
        """The inner nodes on the paths of some answers, ascending, so the root first."""
        nodes = np.unique(self.paths[answers])
        nodes = nodes[nodes >= 0]
        return np.concatenate([[0], nodes[~self.is_leaf[nodes]]])


def expand_automaton(automaton: AnswerAutomaton, answers: np.ndarray) -> AnswerTree:
    """Lists answers of an automaton, a few thousand of them, as calibration and its checks need.

    Args:
        automaton: of the answers.
        answers: their digits, int64 (answers, env_steps).
    """
    children: list[dict[int, int]] = [{}]
    parent, letter, state = [-1], [-1], [0]
    paths = np.full((len(answers), automaton.depth), -1, dtype=np.int64)
    for answer, digits in enumerate(answers):
        node = 0
        for place, written in enumerate(automaton.encode(digits).tolist()):
            following = children[node].setdefault(written, len(children))
            if following == len(children):
                children.append({})
                parent.append(node)
                letter.append(written)
                state.append(int(automaton.child[state[node], written]))
            paths[answer, place] = node = following
    return _describe(automaton, np.array(parent), np.array(letter), np.array(state), paths)


def _describe(
    automaton: AnswerAutomaton,
    parent: Int[np.ndarray, "node"],
    letter: Int[np.ndarray, "node"],
    state: Int[np.ndarray, "node"],
    paths: Int[np.ndarray, "answer place"],
) -> AnswerTree:
    token = np.where(letter >= 0, automaton.alphabet[letter], -1)
    depth = np.zeros(len(parent), dtype=np.int64)
    ancestors = np.full((len(parent), automaton.depth + 1), -1, dtype=np.int64)
    ancestors[:, 0] = 0
    for d in range(automaton.depth):
        taken = paths[paths[:, d] >= 0]
        depth[taken[:, d]] = d + 1
        ancestors[taken[:, d], 1 : d + 2] = taken[:, : d + 1]
    is_leaf = state == automaton.num_states - 1
    return AnswerTree(parent, letter, token, depth, state, ancestors, is_leaf, paths)
