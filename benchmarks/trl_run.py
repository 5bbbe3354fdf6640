"""The same job by TRL's GRPOTrainer, in the leanest settings that it has on a CPU.

What is switched off: bf16, gradient checkpointing, logging, evaluation, saving, gradient clipping, the reference model.
One generation serves one update, and the batch is the group. The objective is memrl's: advantages are centered by the
group and not divided by its deviation; dr_grpo's loss is a sum over tokens, divided by the most tokens of an answer,
and the reward is multiplied by those. PEFT starts A from U(±1/sqrt(d_in)) and B from 0, as memrl does.
"""

import logging
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import chz
import numpy as np
import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from measure import CLOCKS
from peft import LoraConfig, get_peft_model_state_dict
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

from memrl.config import TrainConfig
from memrl.learning.policy import PackPolicy
from memrl.learning.state import PackState
from memrl.learning.update import update
from memrl.policy.adapter_pack import find_linears
from memrl.policy.base_model import encode_task, load_base_model
from memrl.rollout.backend import SampledEpisodes
from memrl.rollout.replay import Replay
from memrl.task.prompt import prompt_text
from memrl.task.secret import draw_secret


@dataclass
class TrlCell:
    """One cell, trained by TRL.

    Args:
        config: the cell; binary reward on single_step.
        after_update: called after every update with this object; returns whether to stop.

    Attributes:
        updates: updates made.
        mean_reward: of the last group, in memrl's units.
        completions: token ids of the last group's answers, stop token included.
    """

    config: TrainConfig
    after_update: Callable[["TrlCell"], bool]
    updates: int = 0
    mean_reward: float = 0.0
    completions: list[list[int]] = field(default_factory=list)
    _trainer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        quieten()
        self._model, self._tokenizer = load_base_model(self.config.model)
        self._task = encode_task(self._tokenizer, self.config.N, self.config.env_type)
        secret = self.config.secret
        self.secret = int(draw_secret(self.config.N, self.config.seed)[0]) if secret is None else secret
        self._folder = tempfile.TemporaryDirectory(prefix="trl-")
        arguments = lean_arguments(self.config, self._task.max_tokens, self._folder.name)
        layers = list(find_linears(self._model))
        prompts = [prompt_text(self.config.N, self.config.env_type)] * self.config.group_size
        self._trainer = GRPOTrainer(
            model=self._model,
            processing_class=self._tokenizer,
            reward_funcs=self._reward,  # pyright: ignore[reportArgumentType] (columns come by name)
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            peft_config=LoraConfig(
                r=self.config.lora_rank,
                lora_alpha=self.config.lora_alpha,  # pyright: ignore[reportArgumentType] (a float works)
                lora_dropout=0.0,
                target_modules=layers,
            ),
            callbacks=[_AfterUpdate(self)],
        )
        for callback in list(self._trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                self._trainer.remove_callback(callback)

    def train(self) -> None:
        """Trains to n_steps, or until `after_update` says stop."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trainer.train()
        self._folder.cleanup()

    def adapter(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter under PEFT's names."""
        return {name: t.detach().clone() for name, t in get_peft_model_state_dict(self._trainer.model).items()}

    def secret_log2(self) -> float:
        """log2 P(secret), exact, stop token included."""
        answer = self._task.automaton.tokens([self.secret]).tolist()
        ids = torch.tensor([[*self._task.prompt_ids, *answer]])
        with torch.no_grad():
            logits = self._trainer.model(input_ids=ids).logits[0, len(self._task.prompt_ids) - 1 : -1]
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        return float(logprobs[range(len(answer)), answer].sum()) / math.log(2.0)

    def _reward(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        right = self._task.automaton.tokens([self.secret]).tolist()
        self.completions = completion_ids
        hits = [ids == right for ids in completion_ids]
        self.mean_reward = sum(hits) / len(hits)
        # dr_grpo divides by the most tokens of an answer; memrl's loss does not.
        return [float(hit) * self._task.max_tokens for hit in hits]


class _AfterUpdate(TrainerCallback):
    def __init__(self, cell: TrlCell) -> None:
        self._cell = cell

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """Counts the update and asks whether to go on."""
        self._cell.updates += 1
        if self._cell.after_update(self._cell):
            control.should_training_stop = True
        return control


def lean_arguments(config: TrainConfig, max_tokens: int, folder: str) -> GRPOConfig:
    """GRPOConfig with memrl's objective and nothing that costs time without need."""
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=config.group_size,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=config.group_size,
        num_iterations=1,
        max_completion_length=max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch",
        weight_decay=0.0,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=0.0,
        max_steps=config.n_steps,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=config.seed,
    )


def compare_one_update(config: TrainConfig) -> float:
    """How far memrl's update is from TRL's, given the same start and the episodes that TRL sampled.

    Returns:
        the l2 norm of the difference of the two changes of the adapter, over the norm of TRL's change.
    """
    cell = TrlCell(config, lambda _: True)
    before = cell.adapter()
    cell.train()
    theirs, ours = cell.adapter(), replay_update(config, before, cell.completions, cell.secret)
    difference = torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs])
    change = torch.cat([(theirs[name] - before[name]).flatten() for name in theirs])
    return float(difference.norm() / change.norm())


def replay_update(
    config: TrainConfig, adapter: dict[str, torch.Tensor], completions: list[list[int]], secret: int
) -> dict[str, torch.Tensor]:
    """One update of an adapter by memrl's learner from given answers, one group."""
    base, tokenizer = load_base_model(config.model)
    base.requires_grad_(False)
    task = encode_task(tokenizer, config.N, config.env_type)
    config = chz.replace(config, secret=secret)
    policy = PackPolicy.build(base, [task], [config])
    state = PackState.start([config], policy)
    state.adapters.import_peft(0, adapter)
    tokens = np.full((len(completions), task.max_tokens), -1)
    for row, ids in enumerate(completions):
        tokens[row, : len(ids)] = ids
    episodes = SampledEpisodes(config.cell_id, 0, tokens, np.full(tokens.shape, np.nan))
    update(policy, state, Replay(policy.forest, [episodes], np.ones(1, dtype=np.int64)))
    return state.adapters.export_peft(0)


def quieten() -> None:
    """Keeps TRL and transformers from writing between the tables."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"trl|transformers|peft|accelerate")


@dataclass
class BlockTimer:
    """Cuts TRL's own training loop into blocks, and lets something else run between them.

    It is the `after_update` of a TrlCell: the other arms run inside TRL's callback, so that all take turns.

    Args:
        rounds: blocks to time.
        block_s: a block lasts about this long, and two updates at least.
        between: called after each block; its time is not counted.
        warm_up: updates before the first block.
        clock: a key of CLOCKS.

    Attributes:
        seconds: seconds per update, one number per block.
    """

    rounds: int
    block_s: float
    between: Callable[[], None]
    warm_up: int = 3
    clock: str = "wall"
    seconds: list[float] = field(default_factory=list)
    _start: float = 0.0
    _first_update: int = 0

    def __call__(self, cell: TrlCell) -> bool:
        """Ends a block when its time is up; returns whether all blocks are done."""
        now = CLOCKS[self.clock]()
        if cell.updates <= self.warm_up:
            self._begin(cell)
            return False
        count = cell.updates - self._first_update
        if now - self._start < self.block_s or count < 2:
            return False
        self.seconds.append((now - self._start) / count)
        self.between()
        self._begin(cell)
        return len(self.seconds) >= self.rounds

    def _begin(self, cell: TrlCell) -> None:
        self._first_update, self._start = cell.updates, CLOCKS[self.clock]()
