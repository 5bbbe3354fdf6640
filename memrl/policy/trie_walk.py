"""Sampling and scoring in one pass: a walk down the answers of every root, with counts instead of episodes.

A root is a prompt with a secret of its own; each belongs to a cell, whose policy answers it. At each node the episodes
that reached it are split over its tokens, each by a draw of its own, and go on as counts. So the network's cost follows
the distinct beginnings of answers and not the episodes. Nodes are beginnings; which tokens may follow is looked up in
the answers' automaton, in the state that a node is in. The pass that samples is the forward pass of the update. The
path of the secret is always among the nodes, so P(secret) costs nothing more.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from memrl.policy.forest import Forest
from memrl.policy.network import PackedNetwork
from memrl.policy.next_tokens import NextTokens
from memrl.task.env import Outcomes


@dataclass
class Level:
    """The nodes of one depth, over all roots; sorted by root, and so by cell.

    Attributes:
        depth: tokens before these nodes.
        root: the root of each node, int64 (nodes,).
        cell: the root's cell, int64 (nodes,).
        state: the node's state, int64 (nodes,).
        on_secret: whether the node is a beginning of its root's secret; bool (nodes,).
        counts: episodes of each group of the root that reached it, int64 (nodes, groups).
        parent: place in the level before of the node that it follows; of a root, its own number; int64 (nodes,).
        letter: place in the alphabet of the token that leads to it, -1 at a root; int64 (nodes,).
        edge: the edge that leads to it, -1 at a root; int64 (nodes,).
    """

    depth: int
    root: np.ndarray
    cell: np.ndarray
    state: np.ndarray
    on_secret: np.ndarray
    counts: np.ndarray
    parent: np.ndarray
    letter: np.ndarray
    edge: np.ndarray


@runtime_checkable
class Splitter(Protocol):
    """Splits the episodes at each node of a level over the node's tokens."""

    def split(self, level: Level, legal: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        """Returns int64 (nodes, groups, A+1): episodes by letter, last those that no answer follows.

        Args:
            level: the nodes and how many episodes reached each.
            legal: probability of each letter, 0 where no answer follows; float64 (nodes, A).
            illegal: probability of a token that no answer has there, float64 (nodes,).
        """
        ...

    def pick_illegal(self, cell: int, probabilities: np.ndarray, count: int) -> np.ndarray:
        """Token ids of `count` episodes that left the answers, given the unnormalized probabilities of all tokens."""
        ...

    def find_rollout_logprob(self, walk: "Walk") -> Tensor:
        """The sampler's log-probability of each edge, nats, without gradient; (edges,)."""
        ...


@dataclass
class Nodes:
    """Nodes of a walk that episodes reached, and what the policy says there.

    Attributes:
        root: int64 (nodes,).
        cell: the root's cell, int64 (nodes,).
        counts: episodes that reached each, over all groups; int64 (nodes,).
        tokens: token ids of the beginning that each node is, padded with -1; int64 (nodes, depth).
        logprob: log-probabilities of the letters that may follow, nats, among themselves; -inf for the others; with
            gradient, (nodes, A).
    """

    root: np.ndarray
    cell: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    logprob: Tensor


@dataclass
class Walk:
    """What one walk saw: edges (a token after a beginning), and outcomes (ways an episode ended).

    Attributes:
        edge_logprob: log-probability of each edge's token, nats, with gradient; (edges,).
        edge_cell: int64 (edges,).
        edge_env_step: the env_step the token belongs to; int64 (edges,).
        outcome_root: int64 (outcomes,), ascending.
        outcome_cell: the root's cell, int64 (outcomes,), ascending.
        outcome_counts: episodes of each group of the root that ended so; int64 (outcomes, groups).
        outcome_path: edges of each outcome, padded with -1; int64 (outcomes, depth).
        outcome_tokens: token ids along the path, padded with -1; int64 (outcomes, depth).
        outcomes: how they ended.
        secret_log2: log2 P(secret) of each root, exact, stop token included; float64 (roots,).
        symbol_log2: its part in each env_step, NaN beyond the secret's last; float64 (roots, env_steps).
        nodes: of the cells that were watched; None where none was.
    """

    edge_logprob: Tensor
    edge_cell: np.ndarray
    edge_env_step: np.ndarray
    outcome_root: np.ndarray
    outcome_cell: np.ndarray
    outcome_counts: np.ndarray
    outcome_path: np.ndarray
    outcome_tokens: np.ndarray
    outcomes: Outcomes
    secret_log2: np.ndarray
    symbol_log2: np.ndarray
    nodes: Nodes | None = None


class _Trace:
    """Collects edges, outcomes and watched nodes level by level."""

    def __init__(self, num_roots: int, num_env_steps: int, watched: np.ndarray) -> None:
        self.num_edges = 0
        self.watched, self.watches = watched, bool(watched.any())
        self.node_logprobs: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        self.columns: dict[str, list[np.ndarray]] = {}
        self._unscored: list[tuple[np.ndarray, np.ndarray]] = []
        self.secret_log2 = np.zeros(num_roots)
        self.symbol_log2 = np.full((num_roots, num_env_steps), np.nan)

    def add(self, **columns: np.ndarray) -> None:
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)

    def add_edges(self, level: "Level", row: np.ndarray, token: np.ndarray, **columns: np.ndarray) -> np.ndarray:
        """Adds edges that leave these rows of a level, not scored yet; returns their numbers."""
        self._unscored.append((row, token))
        depth = np.full(len(row), level.depth)
        self.add(edge_cell=level.cell[row], edge_parent=level.edge[row], edge_depth=depth, edge_token=token, **columns)
        self.num_edges += len(row)
        return np.arange(self.num_edges - len(row), self.num_edges)

    def add_nodes(self, level: "Level", next_tokens: NextTokens, child: np.ndarray, alphabet: np.ndarray) -> None:
        """Adds the nodes of a level that episodes of watched cells reached."""
        if not self.watches:
            return
        rows = np.flatnonzero(self.watched[level.cell] & (level.counts.sum(1) > 0))
        if len(rows):
            letters = next_tokens.pick(rows.repeat(len(alphabet)), np.tile(alphabet, len(rows)))
            follows_none = torch.from_numpy(child[rows] < 0).to(letters.device)
            letters = letters.unflatten(0, follows_none.shape).masked_fill(follows_none, -torch.inf)
            self.node_logprobs.append(torch.log_softmax(letters, dim=-1))
            counts = level.counts[rows].sum(1)
            self.add(
                node_root=level.root[rows], node_cell=level.cell[rows], node_counts=counts, node_edge=level.edge[rows]
            )

    def score_edges(self, next_tokens: NextTokens) -> Tensor:
        """Adds the log-probabilities of a level's edges, in one piece; returns them."""
        row, token = map(np.concatenate, zip(*self._unscored, strict=True))
        self.logprobs.append(next_tokens.pick(row, token))
        self._unscored = []
        return self.logprobs[-1].detach()

    def add_secret(self, root: np.ndarray, env_step: np.ndarray, log2: np.ndarray) -> None:
        """Adds the next token of each root's secret."""
        self.secret_log2[root] += log2
        before = self.symbol_log2[root, env_step]
        self.symbol_log2[root, env_step] = np.where(np.isnan(before), 0.0, before) + log2

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(self.columns[name])


def walk_tries(
    network: PackedNetwork,
    forest: Forest,
    num_episodes: np.ndarray,
    splitter: Splitter,
    watched: np.ndarray | None = None,
) -> Walk:
    """Walks every root's answers: samples (or replays) episodes, and scores them and the secrets.

    Args:
        network: the pack's policies.
        forest: the pack's roots.
        num_episodes: episodes of each group of each root, int64 (roots, groups).
        splitter: who decides how episodes split at a node.
        watched: of which cells all letters at every node that episodes reached are kept, bool (cells,); unset: of none.

    Returns:
        the walk, with gradient where gradients are enabled.
    """
    trace = _start_trace(forest, watched)
    _descend(network, forest, num_episodes, splitter, trace)
    return _finish(forest, trace)


@torch.no_grad()
def score_secrets(network: PackedNetwork, forest: Forest) -> np.ndarray:
    """log2 P(secret) of each root, exact, stop token included: a walk without episodes; float64 (roots,)."""
    trace = _start_trace(forest)
    _descend(network, forest, np.zeros((forest.num_roots, 1), dtype=np.int64), _Nobody(), trace)
    return trace.secret_log2


def _start_trace(forest: Forest, watched: np.ndarray | None = None) -> _Trace:
    watched = np.zeros(forest.num_cells, dtype=bool) if watched is None else watched
    return _Trace(forest.num_roots, int(forest.states.steps_done.max()), watched)


class _Nobody:
    """No episodes."""

    def split(self, level: Level, legal: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        return np.zeros((*level.counts.shape, legal.shape[1] + 1), dtype=np.int64)

    def pick_illegal(self, cell: int, probabilities: np.ndarray, count: int) -> np.ndarray:
        raise AssertionError("there are no episodes")

    def find_rollout_logprob(self, walk: Walk) -> Tensor:
        raise AssertionError("there are no episodes")


def _descend(
    network: PackedNetwork, forest: Forest, num_episodes: np.ndarray, splitter: Splitter, trace: _Trace
) -> None:
    """Visits level after level, to the end of the longest answer."""
    roots = np.arange(forest.num_roots)
    on_secret, unset = np.ones(len(roots), dtype=bool), np.full(len(roots), -1)
    level = Level(0, roots, forest.root_cell, forest.root_state, on_secret, num_episodes, roots, unset, unset)
    next_tokens = network.prefill()
    while True:
        level = _visit(forest, level, next_tokens, splitter, trace)
        if not len(level.root):
            break
        next_tokens = network.extend(forest.states.alphabet[level.letter], level.parent, level.cell)


def _finish(forest: Forest, trace: _Trace) -> Walk:
    """Sorts outcomes by root, and reads off their paths what they answered."""
    order = np.argsort(trace.column("outcome_root"), kind="stable")
    root = trace.column("outcome_root")[order]
    env_step = trace.column("edge_env_step")
    path = _trace_back(trace, trace.column("outcome_edge")[order], forest.states.depth)
    tokens = np.where(path >= 0, trace.column("edge_token")[path], -1)
    written = np.where(path >= 0, trace.column("edge_digit")[path], -1)
    digits = np.full((len(path), int(forest.states.steps_done.max())), -1, dtype=np.int64)
    row, place = np.nonzero(written >= 0)
    digits[row, env_step[path[row, place]]] = written[row, place]
    return Walk(
        torch.cat(trace.logprobs),
        trace.column("edge_cell"),
        env_step,
        root,
        forest.root_cell[root],
        trace.column("outcome_counts")[order],
        path,
        tokens,
        Outcomes(digits, trace.column("well_formed")[order]),
        trace.secret_log2,
        trace.symbol_log2,
        _finish_nodes(forest, trace) if trace.node_logprobs else None,
    )


def _finish_nodes(forest: Forest, trace: _Trace) -> Nodes:
    last = trace.column("node_edge")
    path = np.full((len(last), forest.states.depth), -1, dtype=np.int64)
    path[last >= 0] = _trace_back(trace, last[last >= 0], forest.states.depth)
    return Nodes(
        trace.column("node_root"),
        trace.column("node_cell"),
        trace.column("node_counts"),
        np.where(path >= 0, trace.column("edge_token")[path], -1),
        torch.cat(trace.node_logprobs),
    )


def _trace_back(trace: _Trace, last: np.ndarray, longest: int) -> np.ndarray:
    """The edges that lead to each of the last ones, itself included, padded with -1; int64 (outcomes, longest)."""
    parent, depth = trace.column("edge_parent"), trace.column("edge_depth")
    path = np.full((len(last), longest), -1, dtype=np.int64)
    row, edge = np.arange(len(last)), last
    while len(edge):
        path[row, depth[edge]] = edge
        onward = parent[edge] >= 0
        row, edge = row[onward], parent[edge[onward]]
    return path


def _visit(forest: Forest, level: Level, next_tokens: NextTokens, splitter: Splitter, trace: _Trace) -> Level:
    """Splits one level's episodes, records edges and outcomes; returns the next level."""
    states = forest.states
    child = states.child[level.state]
    probabilities, total = next_tokens.score(states.alphabet)
    legal = np.where(child >= 0, probabilities, 0.0)
    trace.add_nodes(level, next_tokens, child, states.alphabet)
    counts = splitter.split(level, legal, np.maximum(total - legal.sum(1), 0.0))
    on_secret = np.zeros(child.shape, dtype=bool)
    secret_row = np.flatnonzero(level.on_secret)
    on_secret[secret_row, forest.secret_letters[level.root[secret_row], level.depth]] = True
    row, letter = np.nonzero((counts[:, :, :-1].sum(1) > 0) | on_secret)
    following, is_secret = child[row, letter].astype(np.int64), on_secret[row, letter]
    edges = trace.add_edges(
        level,
        row,
        states.alphabet[letter],
        edge_env_step=states.steps_done[level.state[row]],
        edge_digit=states.digit[level.state[row], letter],
    )
    reached = counts[row, :, letter]
    ended = states.is_end[following] & (reached.sum(1) > 0)
    trace.add(
        outcome_root=level.root[row[ended]],
        outcome_counts=reached[ended],
        outcome_edge=edges[ended],
        well_formed=np.ones(ended.sum(), dtype=bool),
    )
    _record_malformed(forest, level, next_tokens, child, counts[:, :, -1], splitter, trace)
    on_path = trace.score_edges(next_tokens)[: len(row)].double().cpu().numpy()[is_secret]
    trace.add_secret(level.root[row[is_secret]], states.steps_done[level.state[row[is_secret]]], on_path / np.log(2.0))
    onward = ~states.is_end[following]
    row = row[onward]
    return Level(
        level.depth + 1,
        level.root[row],
        level.cell[row],
        following[onward],
        is_secret[onward],
        reached[onward],
        row,
        letter[onward],
        edges[onward],
    )


def _record_malformed(
    forest: Forest,
    level: Level,
    next_tokens: NextTokens,
    child: np.ndarray,
    left: np.ndarray,
    splitter: Splitter,
    trace: _Trace,
) -> None:
    """Records the episodes whose next token no answer has: rare, so one row at a time."""
    for row in np.nonzero(left.sum(1))[0]:
        probabilities = next_tokens.describe_row(int(row))
        probabilities[forest.states.alphabet[child[row] >= 0]] = 0.0
        tokens = splitter.pick_illegal(int(level.cell[row]), probabilities, int(left[row].sum()))
        group = np.repeat(np.arange(left.shape[1]), left[row])
        for token in np.unique(tokens):
            edges = trace.add_edges(
                level,
                np.array([row]),
                np.array([token]),
                edge_env_step=forest.states.steps_done[level.state[[row]]],
                edge_digit=np.array([-1]),
            )
            trace.add(
                outcome_root=level.root[[row]],
                outcome_counts=np.bincount(group[tokens == token], minlength=left.shape[1])[None],
                outcome_edge=edges,
                well_formed=np.zeros(1, dtype=bool),
            )
