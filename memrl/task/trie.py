"""The trie of all answers: which tokens may follow which, and what each path answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AnswerTrie:
    """The token trie of the N answers to one prompt; node 0 is the root, leaves are whole answers.

    Attributes:
        alphabet: token ids that occur in answers, ascending; int64 (A,).
        child: child[node, a] is the node that token alphabet[a] leads to, -1 where it is not allowed; int32 (nodes, A).
        answer: the integer that a leaf answers, -1 at inner nodes; int64 (nodes,).
        prefix: the smallest answer below a node; int64 (nodes,).
        num_answers: answers below a node (1 at a leaf); int64 (nodes,).
        env_step: the env_step that the node's incoming token belongs to, -1 at the root; int64 (nodes,).
        steps_done: env_steps that are complete at the node; int64 (nodes,).
        paths: nodes from the first token to the leaf, by answer, padded with -1; int64 (N, longest).
    """

    alphabet: np.ndarray
    child: np.ndarray
    answer: np.ndarray
    prefix: np.ndarray
    num_answers: np.ndarray
    env_step: np.ndarray
    steps_done: np.ndarray
    paths: np.ndarray

    @property
    def num_nodes(self) -> int:
        """Nodes, root and leaves included."""
        return len(self.answer)

    @property
    def depth(self) -> int:
        """Tokens of the longest answer."""
        return self.paths.shape[1]

    def is_leaf(self, nodes: np.ndarray) -> np.ndarray:
        """Whether each node is a whole answer; same shape as `nodes`."""
        return self.answer[nodes] >= 0

    def uniform_log2(self) -> np.ndarray:
        """log2 of the exact next-token distribution of a uniform secret: (nodes, A), -inf where not allowed."""
        below = np.where(self.child >= 0, self.num_answers[self.child], 0)
        with np.errstate(divide="ignore"):
            return np.log2(below / self.num_answers[:, None])


def build_trie(answers: Sequence[Sequence[Sequence[int]]]) -> AnswerTrie:
    """Builds the trie of all answers.

    Args:
        answers: for each integer 0 .. N-1 its token ids, one sequence an env_step (the stop token, where there is
            one, belongs to the last).

    Raises:
        ValueError: an env_step has no token, two answers that begin alike cut into env_steps differently, or an answer
            is another one or its beginning (then no path is unambiguous).
    """
    alphabet = np.unique([token for steps in answers for step in steps for token in step])
    symbol = {int(token): a for a, token in enumerate(alphabet)}
    children: list[dict[int, int]] = [{}]
    env_step, steps_done, answer = [-1], [0], [-1]
    paths: list[list[int]] = []
    for value, steps in enumerate(answers):
        if not steps or not all(steps):
            raise ValueError(f"answers must have a token in every env_step, got none for {value}")
        node, path = 0, []
        for t, step in enumerate(steps):
            for i, token in enumerate(step):
                done = t + (i == len(step) - 1)
                following = children[node].setdefault(symbol[token], len(children))
                if following == len(children):
                    children.append({})
                    env_step.append(t)
                    steps_done.append(done)
                    answer.append(-1)
                if (env_step[following], steps_done[following]) != (t, done):
                    raise ValueError("answers must cut into env_steps alike where they begin alike")
                node = following
                path.append(node)
        if answer[node] >= 0 or children[node]:
            raise ValueError(f"answers must each have a path of their own, got an ambiguous one for {value}")
        answer[node] = value
        paths.append(path)
    return _pack_trie(alphabet, children, np.array(env_step), np.array(steps_done), np.array(answer), paths)


def _pack_trie(
    alphabet: np.ndarray,
    children: list[dict[int, int]],
    env_step: np.ndarray,
    steps_done: np.ndarray,
    answer: np.ndarray,
    paths: list[list[int]],
) -> AnswerTrie:
    nodes = len(children)
    if any(answer[node] >= 0 and children[node] for node in range(nodes)):
        raise ValueError("answers must not begin with another answer; end them with a stop token")
    child = np.full((nodes, len(alphabet)), -1, dtype=np.int32)
    for node, following in enumerate(children):
        child[node, list(following)] = list(following.values())
    padded = np.full((len(paths), max(map(len, paths))), -1, dtype=np.int64)
    num_answers, prefix = np.zeros(nodes, dtype=np.int64), np.full(nodes, len(paths), dtype=np.int64)
    for value, path in enumerate(paths):
        padded[value, : len(path)] = path
        num_answers[path] += 1
        prefix[path] = np.minimum(prefix[path], value)
    num_answers[0], prefix[0] = len(paths), 0
    return AnswerTrie(alphabet, child, answer, prefix, num_answers, env_step, steps_done, padded)
