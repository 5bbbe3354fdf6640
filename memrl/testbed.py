"""memrl as a testbed: the ledger of a trainer of your own, on any transformers or PEFT model."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from memrl.config import hash_fields
from memrl.policy.base_model import encode_cell
from memrl.policy.calibration import check_calibrated, measure_prior
from memrl.tables.provenance import describe_processor
from memrl.tables.rows import LORA, trained_row
from memrl.tables.schema import CURVES, CURVES_SCHEMA, EPISODES_TO_MEMORIZE, Row
from memrl.tables.store import TableStore
from memrl.task.reach import Reach
from memrl.task.result import RunResult, Status
from memrl.task.standalone import Task, read_tokens
from memrl.theory.observer import PackObserver


class Ledger:
    """The account of a trainer's run on a task, in bits, by the same measures as memrl's own runs.

    `reward` is the trainer's reward function and hears every episode; `note` measures the policy; `save` writes rows.

    Args:
        task: the task.
        model: the policy, a transformers model or a PEFT one around it, which the trainer changes in place.
        tokenizer: its tokenizer.
        agent: what the trainer is called in tables and page.

    Attributes:
        prompt_ids: the prompt's tokens.
        max_tokens: tokens of the longest answer, stop token included.
        episodes: episodes heard so far.

    Raises:
        ValueError: the model does not answer the prompt uniformly, so that there is less to learn than is counted; or
            the name is memrl's own.
    """

    def __init__(self, task: Task, model: Any, tokenizer: PreTrainedTokenizerBase, agent: str = "other") -> None:
        if agent == LORA:
            raise ValueError(f"agent must be a name of its own, got {agent}, which is memrl's")
        self.task, self.agent, self._model = task, agent, model
        self._encoded = encode_cell(tokenizer, task.config)
        self.prompt_ids, self.max_tokens = list(self._encoded.prompt_ids), self._encoded.max_tokens
        self._prior = measure_prior(model, self._encoded)
        check_calibrated(self._prior, self._encoded, task.config.model)
        self._observer = PackObserver([task.channel])
        self._reach = Reach.start(np.array([task.signal_bits]))
        self.episodes, self._tokens, self._start = 0, 0, time.monotonic()
        self._curve: list[Row] = []
        self._paid: list[float] = []
        self._formed: list[bool] = []

    @property
    def cell_id(self) -> str:
        """The run's name in the tables."""
        return hash_fields({"agent": self.agent, "cell": self.task.config.cell_id})

    def reward(self, completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
        """The return of each answer; each is heard by the ideal observer, and counted, once.

        Args:
            completion_ids: tokens that the policy wrote after the prompt, stop token included.
        """
        outcomes = read_tokens(self._encoded.automaton, completion_ids)
        rewards = self.task.pay(outcomes)
        self._observer.observe(0, outcomes, rewards)
        returns = np.nansum(rewards, axis=1).tolist()
        self.episodes += len(returns)
        self._tokens += sum(len(self.prompt_ids) + len(ids) for ids in completion_ids)
        self._paid += returns
        self._formed += outcomes.well_formed.tolist()
        return returns

    @property
    def secret_log2(self) -> float:
        """log2 P(secret), exact, stop token included: by teacher forcing, and not by sampling."""
        answer = self._encoded.automaton.tokens(self.task.digits)
        ids = torch.tensor([[*self.prompt_ids, *answer.tolist()]], device=next(self._model.parameters()).device)
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad():
            logits = self._model(input_ids=ids).logits[0, len(self.prompt_ids) - 1 : -1]
        self._model.train(was_training)
        logprobs = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
        return float(logprobs[range(len(answer)), answer].sum()) / math.log(2.0)

    @property
    def absorbed_bits(self) -> float:
        """signal_bits + log2 P(secret)."""
        return self.task.signal_bits + self.secret_log2

    @property
    def observed_bits(self) -> float:
        """What an ideal observer of all rewards so far knows of the secret."""
        return float(self._observer.observed_bits[0])

    def note(self, update: int) -> bool:
        """Measures the policy after so many updates; returns whether it knows the secret as well as it should.

        Call it before the first update (with 0), and after each or every few.
        """
        self._complete()
        log2 = self.secret_log2
        self._reach.note(np.array([0]), np.array([self.episodes]), np.array([log2]))
        unknown = dict.fromkeys(CURVES_SCHEMA.names, math.nan)
        measured = {"observed_bits": self.observed_bits, "absorbed_bits": self.task.signal_bits + log2}
        self._curve.append(unknown | {"cell_id": self.cell_id, "update": update, "episodes": self.episodes} | measured)
        return log2 >= math.log2(self.task.config.stop_probability)

    def save(self, address: str) -> Row:
        """Writes the curve and the row of the run into tables, beside whatever they hold.

        Args:
            address: of the tables, such as results/mine; memrl.report shows them.

        Returns:
            The row of episodes_to_memorize.

        Raises:
            ValueError: nothing was noted, or the address can't be written.
        """
        if not self._curve:
            raise ValueError("note must be called before save, got a run without a measurement")
        self._complete()
        store = TableStore(address)
        row = self._describe()
        with store.open_for_writing(self.cell_id):
            store.append(CURVES, self._curve)
            store.append(EPISODES_TO_MEMORIZE, [row])
        return row

    def _complete(self) -> None:
        """Gives the last row of the curve what the episodes since then brought."""
        if self._curve and self._paid:
            self._curve[-1] |= {"mean_reward": np.mean(self._paid), "well_formed": np.mean(self._formed)}
        self._paid, self._formed = [], []

    def _describe(self) -> Row:
        last = self._curve[-1]
        knows = last["absorbed_bits"] - self.task.signal_bits >= math.log2(self.task.config.stop_probability)
        status: Status = "memorized" if knows else "budget_spent"
        result = RunResult(
            self._reach.milestones(0),
            self.episodes,
            last["update"],
            last["absorbed_bits"],
            last["observed_bits"],
            status,
            time.monotonic() - self._start,
            self._reach.slope_bits(0),
            self._tokens,
        )
        base = {
            "prompt_hash": hash_fields({"ids": self._encoded.prompt_ids}),
            "answer_tokens": self.max_tokens,
            "processor": describe_processor(),
        }
        prior = self._prior
        row = trained_row(self.task.config, self.task.channel, result, prior.kl_bits, prior.well_formed_mass, base)
        return row | {"agent": self.agent, "cell_id": self.cell_id}
