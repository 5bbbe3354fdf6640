"""Sampling and scoring in one pass: a walk down every cell's answer trie, with counts instead of episodes.

At each node the episodes that reached it are split over its tokens, each by a draw of its own, and go on as counts. So
the network's cost follows the distinct beginnings of answers and not the episodes. The pass that samples is the
forward pass of the update. The path of the secret is always among the nodes, so P(secret) costs nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from memrl.policy.network import PackedNetwork
from memrl.task.env import Outcomes
from memrl.task.trie import AnswerTrie


class Forest:
    """The tries of a pack's cells side by side: one numbering of nodes, one alphabet; equal tries are shared.

    Attributes:
        alphabet: token ids, int64 (A,).
        child: global node that a symbol leads to, or -1; int32 (nodes, A).
        answer, prefix, env_step, steps_done: as in AnswerTrie; int64 (nodes,).
        root: the root of each cell's trie; int64 (cells,).
        secret_path: global nodes of each cell's secret, padded with -1; int64 (cells, longest).
    """

    def __init__(self, tries: Sequence[AnswerTrie], secrets: Sequence[int]) -> None:
        distinct = list({id(t): t for t in tries}.values())
        self.alphabet = np.unique(np.concatenate([t.alphabet for t in distinct]))
        offsets = np.cumsum([0, *(t.num_nodes for t in distinct)])
        self.child = np.full((offsets[-1], len(self.alphabet)), -1, dtype=np.int32)
        for trie, offset in zip(distinct, offsets, strict=False):
            columns = np.searchsorted(self.alphabet, trie.alphabet)
            block = np.where(trie.child >= 0, trie.child + offset, -1)
            self.child[offset : offset + trie.num_nodes, columns] = block
        self.answer, self.prefix, self.env_step, self.steps_done = (
            np.concatenate([getattr(t, name) for t in distinct])
            for name in ("answer", "prefix", "env_step", "steps_done")
        )
        offset_of = {id(t): int(o) for t, o in zip(distinct, offsets, strict=False)}
        self.root = np.array([offset_of[id(t)] for t in tries])
        longest = max(t.depth for t in tries)
        self.secret_path = np.full((len(tries), longest), -1, dtype=np.int64)
        for row, (trie, secret) in enumerate(zip(tries, secrets, strict=True)):
            path = trie.paths[secret]
            self.secret_path[row, : len(path)] = np.where(path >= 0, path + self.root[row], -1)

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the forest to the given cells."""
        self.root, self.secret_path = self.root[cells], self.secret_path[cells]


@dataclass
class Level:
    """The nodes of one depth, over all cells; sorted by cell.

    Attributes:
        cell: the cell of each node, int64 (nodes,).
        node: its number in the forest, int64 (nodes,).
        counts: episodes of each group that reached it, int64 (nodes, groups).
        path: edges from the root to it, int64 (nodes, depth).
    """

    cell: np.ndarray
    node: np.ndarray
    counts: np.ndarray
    path: np.ndarray

    @property
    def depth(self) -> int:
        """Tokens before these nodes."""
        return self.path.shape[1]


class Splitter(Protocol):
    """Splits the episodes at each node of a level over the node's tokens."""

    def split(self, level: Level, legal: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        """Returns int64 (nodes, groups, A+1): episodes by symbol, last those that leave the trie.

        Args:
            level: the nodes and how many episodes reached each.
            legal: probability of each symbol, 0 where no answer follows; float64 (nodes, A).
            illegal: probability of leaving the trie, float64 (nodes,).
        """
        ...

    def pick_illegal(self, cell: int, probabilities: np.ndarray, count: int) -> np.ndarray:
        """Token ids of `count` episodes that left the trie, given the unnormalised probabilities of all tokens."""
        ...


@dataclass
class Walk:
    """What one walk saw: edges (a token after a beginning), and outcomes (ways an episode ended).

    Attributes:
        edge_logprob: log-probability of each edge's token, nats, with gradient; (edges,).
        edge_cell: int64 (edges,).
        edge_env_step: the env_step the token belongs to; int64 (edges,).
        outcome_cell: int64 (outcomes,), ascending.
        outcome_counts: episodes of each group that ended so; int64 (outcomes, groups).
        outcome_path: edges of each outcome, padded with -1; int64 (outcomes, depth).
        outcome_tokens: token ids along the path, padded with -1; int64 (outcomes, depth).
        outcomes: how they ended.
        secret_log2: log2 P(secret) of each cell, exact, stop token included; float64 (cells,).
    """

    edge_logprob: Tensor
    edge_cell: np.ndarray
    edge_env_step: np.ndarray
    outcome_cell: np.ndarray
    outcome_counts: np.ndarray
    outcome_path: np.ndarray
    outcome_tokens: np.ndarray
    outcomes: Outcomes
    secret_log2: np.ndarray


class _Ledger:
    """Collects edges and outcomes level by level."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.num_edges = 0
        self.logprobs: list[Tensor] = []
        self.columns: dict[str, list[np.ndarray]] = {}

    def add(self, **columns: np.ndarray) -> None:
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(self.columns[name])

    def pad(self, path: np.ndarray) -> np.ndarray:
        padded = np.full((len(path), self.depth), -1, dtype=np.int64)
        padded[:, : path.shape[1]] = path
        return padded


def walk_tries(network: PackedNetwork, forest: Forest, num_episodes: np.ndarray, splitter: Splitter) -> Walk:
    """Walks every cell's trie: samples (or replays) episodes, and scores them and the secret.

    Args:
        network: the pack's policies.
        forest: the pack's tries and secrets.
        num_episodes: episodes of each group of each cell, int64 (cells, groups).
        splitter: who decides how episodes split at a node.

    Returns:
        the walk, with gradient where gradients are enabled.
    """
    cells = len(forest.root)
    ledger = _Ledger(forest.secret_path.shape[1])
    secret_log2 = np.zeros(cells)
    level = Level(np.arange(cells), forest.root, num_episodes, np.empty((cells, 0), dtype=np.int64))
    logits = network.prefill()
    while True:
        parents, level = _visit(forest, level, logits, splitter, ledger, secret_log2)
        if not len(level.cell):
            break
        logits = network.extend(ledger.column("edge_token")[level.path[:, -1]], parents, level.cell)
    order = np.argsort(ledger.column("outcome_cell"), kind="stable")
    outcomes = Outcomes(*(ledger.column(n)[order] for n in ("guess", "steps_done", "well_formed")))
    path = ledger.column("outcome_path")[order]
    tokens = np.where(path >= 0, ledger.column("edge_token")[path], -1)
    return Walk(
        torch.cat(ledger.logprobs),
        ledger.column("edge_cell"),
        ledger.column("edge_env_step"),
        ledger.column("outcome_cell")[order],
        ledger.column("outcome_counts")[order],
        path,
        tokens,
        outcomes,
        secret_log2,
    )


def _visit(
    forest: Forest,
    level: Level,
    logits: Tensor,
    splitter: Splitter,
    ledger: _Ledger,
    secret_log2: np.ndarray,
) -> tuple[np.ndarray, Level]:
    """Splits one level's episodes, records edges and outcomes; returns the next level's parents, and it."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    device = logits.device
    logprobs = torch.log_softmax(logits.to(dtype), dim=-1)
    child = forest.child[level.node]
    alphabet = torch.from_numpy(forest.alphabet).to(device)
    with torch.no_grad():
        probabilities = logprobs.exp()
        total = probabilities.sum(-1, dtype=torch.float64).cpu().numpy()
        legal = np.where(child >= 0, probabilities.index_select(1, alphabet).double().cpu().numpy(), 0.0)
    counts = splitter.split(level, legal, np.maximum(total - legal.sum(1), 0.0))
    on_secret = (child >= 0) & (child == forest.secret_path[level.cell, level.depth][:, None])
    row, symbol = np.nonzero((counts[:, :, :-1].sum(1) > 0) | on_secret)
    following = child[row, symbol].astype(np.int64)
    is_secret = on_secret[row, symbol]
    edges = ledger.num_edges + np.arange(len(row))
    path = np.concatenate([level.path[row], edges[:, None]], axis=1)
    picked = torch.from_numpy(row).to(device), torch.from_numpy(forest.alphabet[symbol]).to(device)
    ledger.logprobs.append(logprobs[picked])
    ledger.num_edges += len(row)
    on_path = ledger.logprobs[-1].detach().double().cpu().numpy()[is_secret]
    secret_log2[level.cell[row[is_secret]]] += on_path / np.log(2.0)
    ledger.add(edge_cell=level.cell[row], edge_env_step=forest.env_step[following], edge_token=forest.alphabet[symbol])
    reached = counts[row, :, symbol]
    ended = (forest.answer[following] >= 0) & (reached.sum(1) > 0)
    ledger.add(
        outcome_cell=level.cell[row[ended]],
        outcome_counts=reached[ended],
        outcome_path=ledger.pad(path[ended]),
        guess=forest.answer[following[ended]],
        steps_done=forest.steps_done[following[ended]],
        well_formed=np.ones(ended.sum(), dtype=bool),
    )
    _record_malformed(forest, level, logprobs, child, counts[:, :, -1], splitter, ledger)
    onward = forest.answer[following] < 0
    return row[onward], Level(level.cell[row[onward]], following[onward], reached[onward], path[onward])


def _record_malformed(
    forest: Forest,
    level: Level,
    logprobs: Tensor,
    child: np.ndarray,
    left: np.ndarray,
    splitter: Splitter,
    ledger: _Ledger,
) -> None:
    """Records the episodes whose next token no answer has: rare, so one row at a time."""
    for row in np.nonzero(left.sum(1))[0]:
        with torch.no_grad():
            probabilities = logprobs[row].double().exp().cpu().numpy()
        probabilities[forest.alphabet[child[row] >= 0]] = 0.0
        cell, node = int(level.cell[row]), level.node[row]
        tokens = splitter.pick_illegal(cell, probabilities, int(left[row].sum()))
        group = np.repeat(np.arange(left.shape[1]), left[row])
        for token in np.unique(tokens):
            counts = np.bincount(group[tokens == token], minlength=left.shape[1])
            path = np.append(level.path[row], ledger.num_edges)[None]
            ledger.logprobs.append(logprobs[row, int(token)][None])
            ledger.num_edges += 1
            at = np.array([cell])
            step = forest.steps_done[node]
            ledger.add(edge_cell=at, edge_env_step=np.array([step]), edge_token=np.array([token]))
            ledger.add(
                outcome_cell=at,
                outcome_counts=counts[None],
                outcome_path=ledger.pad(path),
                guess=forest.prefix[[node]] if step else np.zeros(1, dtype=np.int64),
                steps_done=np.array([step]),
                well_formed=np.zeros(1, dtype=bool),
            )
