"""TrainConfig: the one frozen, validated description of a cell."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal

import chz

from memrl.cell_rules import check_cell
from memrl.channels import REWARDS, ChannelKind, channel_kind
from memrl.fields import field, find_default
from memrl.model_files import name_files
from memrl.reward_code import is_address, name_code

EnvType = Literal["single_step", "multi_step"]
Algorithm = Literal["rl", "sft", "distill"]
Explore = Literal["policy", "greedy", "thompson"]
Binning = Literal["log", "linear", "equal_mass"]
Credit = Literal["per_step", "return_to_go", "episode"]
Advantage = Literal[
    "group_centered",
    "leave_one_out",
    "std_normalized",
    "constant_baseline",
    "rejection",
    "maxrl",
    "exponential_weights",
    "delightful",
]
Loss = Literal["importance_sampling", "reinforce", "ppo"]
PromptFormat = Literal["plain", "chat"]
Dtype = Literal["float32", "float64", "bfloat16"]
Rollout = Literal["in_process", "vllm"]

REWARD_TYPES = tuple(REWARDS)
"""The channels that memrl ships; `package.module:function` names one of your own."""

RESULT_VERSION = 3
"""Part of every cell_id: raised when a change of the code, or of a default, changes what a cell measures."""

_WITH_TEMPERATURE = ("exponential_weights", "delightful")

ROLES = {
    "task": "what is memorized, and by which algorithm",
    "draw": "which secret, and which random numbers",
    "channel": "what an episode tells about it",
    "optimizer": "from a gradient to an update",
    "adapter": "what is trained",
    "batch": "how many episodes an update uses",
    "objective": "from rewards to advantages",
    "loss": "from advantages to the loss of a network",
    "malformed": "what a malformed answer pays",
    "budget": "when the run ends",
    "base": "the base model, and how it is asked",
    "sampler": "who samples the episodes",
    "explore": "who asks, where the learner is told all that an observer knows",
    "reuse": "how often a batch is used",
}
"""What a field of TrainConfig is for; everything that treats some fields alike goes by their roles."""

RL_ROLES = ("channel", "malformed", "objective", "loss", "sampler", "explore")
"""Of fields that algorithm=sft does not use."""

NETWORK_ROLES = ("loss", "optimizer", "adapter", "base", "sampler", "explore", "reuse")
"""Of fields that say nothing about a learner without a network."""

SHARED_ROLES = ("base", "sampler", "reuse", "explore")
"""Of fields in which the cells of a pack must agree; besides, all or none of them are distilled."""


def _field(role: str, default: object, doc: str, munger: Callable[..., object] | None = None) -> Any:
    return field(default=default, doc=doc, role=role, munger=munger)


@chz.chz
class TrainConfig:
    """One cell: what is hidden, what the policy is told about it, and how it learns.

    Raises:
        ValueError: a field, or two fields together, make no sense; the message is one line.
    """

    algorithm: Algorithm = _field(
        "task", "rl", "rl; sft (cross-entropy on the secret itself); distill (on what an ideal observer knows)"
    )
    env_type: EnvType = _field("task", "single_step", "single_step: a decimal integer; multi_step: bit by bit")
    N: int = _field("task", 64, "the secret, or each of its symbols, is uniform on 0 .. N-1")
    secret_length: int | None = _field("task", None, "symbols of the secret, a sequence; unset: it is one integer")
    num_keys: int | None = _field(
        "task", None, "keys, each with a prompt (k0 0-63:) and a secret of its own; unset: one secret, no key"
    )
    secret: int | None = _field(
        "draw", None, "fixes the secret (of a sequence, its number among all); unset: drawn from N and seed"
    )
    seed: int = _field("draw", 0, "draws the secret, the adapter's start and the episodes")

    reward_type: str = _field("channel", "binary", " | ".join(REWARD_TYPES) + " or package.module:function")
    reward_code: str | None = _field(
        "channel",
        None,
        "names the code of module:function; unset: that of now",
        munger=lambda self, code: _code(self, code),
    )
    reward_bins: int | None = _field("channel", None, "number of bins B of binned_distance")
    binning: Binning = _field("channel", "log", "how binned_distance cuts the distances")
    malformed_reward: float = _field("malformed", 0.0, "reward of an answer that is no integer in range")
    credit: Credit | None = _field(
        "objective", None, "which rewards an env_step's advantage sums; unset: per_step for per_bit, else episode"
    )
    advantage: Advantage = _field(
        "objective",
        "group_centered",
        "how an episode is judged in its group; rejection and maxrl, for rewards of 0 or 1 per env_step, ascend log p",
    )
    baseline: float = _field("objective", 0.0, "the baseline of advantage=constant_baseline")
    temperature: float = _field("objective", 1.0, "of advantage=exponential_weights and delightful, in reward")
    loss: Loss = _field(
        "loss",
        "importance_sampling",
        "one gradient by any name where the learner itself samples and a batch is used once",
    )
    clip_range: float = _field("loss", 0.2, "clip range of loss=ppo")
    entropy_bonus: float = _field("loss", 0.0, "weight of the entropy of the next symbol, in reward per nat; 0: none")
    kl_penalty: float = _field("loss", 0.0, "weight of KL(policy || base) of the next symbol; 0: none")
    group_size: int = _field("objective", 32, "episodes of a group, which share a baseline (and, of keys, one key)")
    batch_size: int | None = _field(
        "batch", None, "episodes (sft: examples) of a batch; unset: one group for rl, else one"
    )
    updates_per_batch: int = _field("reuse", 1, "how many updates each batch is used for")
    explore: Explore = _field(
        "explore", "policy", "whose guesses distill asks: the policy's, the most telling, or any candidate (thompson)"
    )

    learning_rate: float = _field("optimizer", 3e-3, "Adam's, for A and B alike, constant")
    lora_rank: int = _field("adapter", 8, "rank of the adapter on every linear layer")
    lora_alpha: float = _field("adapter", 32.0, "the adapter's scale is lora_alpha / lora_rank")
    adam_beta1: float = _field("optimizer", 0.9, "Adam's decay of the first moment")
    adam_beta2: float = _field("optimizer", 0.999, "Adam's decay of the second moment")
    adam_epsilon: float = _field("optimizer", 1e-8, "Adam's epsilon")

    measure_every: int | None = _field(
        "budget",
        None,
        "batches between measurements of all keys; unset: farther and farther apart, at <10 % of the cost",
    )
    n_steps: int = _field("budget", 1000, "the most batches of the run")
    max_episodes: int | None = _field("budget", None, "the most episodes of the run; unset: as n_steps allows")
    stop_probability: float = _field(
        "budget", 0.9, "the run ends when P(secret), of keys the share of bits, reaches this"
    )

    model: str = _field("base", "embedded", "embedded, smollm2-135m, a folder, a .gguf file, or a Hugging Face name")
    model_files: str | None = _field(
        "base",
        None,
        "name of the content of a model folder; unset: that of the folder as it is now",
        munger=lambda self, name: name_files(self.model) if name is None and isinstance(self.model, str) else name,
    )
    prompt_format: PromptFormat = _field("base", "plain", "plain, or the model's chat template")
    prompt: str = _field(
        "base", "", "the prompt, with {N}, {last} (N - 1) and {key} filled in; unset: 0-{last}: or bits 0-{last}:"
    )
    bit_separator: str = _field("base", "", "text between bits, for tokenizers that merge them")
    dtype: Dtype = _field("base", "float32", "of the base model; adapters are float32, or float64 with it")
    rollout: Rollout = _field("sampler", "in_process", "who samples the episodes")

    @chz.validate
    def _check(self) -> None:
        check_cell(self)

    @property
    def num_secrets(self) -> int:
        """How many secrets are possible, of one key: N, or N to the power of secret_length."""
        return self.N ** (self.secret_length or 1)

    @property
    def secret_bits(self) -> float:
        """log2 of the number of secrets that are possible, of one key."""
        return math.log2(self.N) * (self.secret_length or 1)

    @property
    def signal_bits(self) -> float:
        """What there is to learn: H(S), the bits of a secret, times the keys."""
        return self.secret_bits * (self.num_keys or 1)

    @property
    def has_groups(self) -> bool:
        """Whether group_size counts: in rl, and where each key that is distilled has a group of its own."""
        return self.algorithm == "rl" or (self.algorithm == "distill" and self.num_keys is not None)

    @property
    def episodes_per_update(self) -> int:
        """Episodes (rl) or examples (sft) that one update uses."""
        if self.batch_size is not None:
            return self.batch_size
        return self.group_size if self.has_groups else 1

    @property
    def prompts_per_update(self) -> int:
        """Prompts that one update asks: one, or as many keys as there are groups (sft: examples)."""
        if self.num_keys is None:
            return 1
        return self.episodes_per_update // (self.group_size if self.has_groups else 1)

    @property
    def episodes_per_prompt(self) -> int:
        """Episodes (sft: examples) of an update for each of its prompts."""
        return self.episodes_per_update // self.prompts_per_update

    @property
    def num_groups(self) -> int:
        """Groups of each prompt of an update; one unless algorithm=rl without keys."""
        is_grouped = self.algorithm == "rl" and self.num_keys is None
        return self.episodes_per_update // self.group_size if is_grouped else 1

    @property
    def resolved_credit(self) -> Credit:
        """The credit assignment in force: per_step for per_bit and episode for the rest, unless set."""
        return self.credit or ("per_step" if channel_kind("rl", self.reward_type).per_step else "episode")

    @property
    def channel_kind(self) -> ChannelKind:
        """What is known of the cell's channel."""
        return channel_kind(self.algorithm, self.reward_type)

    @property
    def episode_budget(self) -> int:
        """The most episodes that the run may use."""
        budget = self.n_steps * self.episodes_per_update
        return budget if self.max_episodes is None else min(budget, self.max_episodes)

    @property
    def channel_name(self) -> str:
        """A short name of what an episode tells, such as `sft`, `binary`, `multi_step/binary` or `sequence-64/binary`.

        >>> TrainConfig(reward_type="binned_distance", reward_bins=8).channel_name
        'binned_distance-8-log'
        >>> TrainConfig(algorithm="sft", num_keys=64).channel_name
        'keys-64/sft'
        """
        keys = "" if self.num_keys is None else f"keys-{self.num_keys}/"
        written = "multi_step" if self.secret_length is None else f"sequence-{self.secret_length}"
        if self.algorithm == "sft":
            return f"{keys}sft" if self.env_type == "single_step" else f"{keys}{written}/sft"
        name = self.reward_type if self.reward_code is None else f"{self.reward_type}@{self.reward_code}"
        if name == "binned_distance":
            name = f"{name}-{self.reward_bins}-{self.binning}"
        if self.algorithm == "distill":
            name = f"{name}-distill-{self.explore}"
        if self.channel_kind.per_step and self.resolved_credit != "per_step":
            name = f"{name}-{self.resolved_credit}"
        native = self.env_type == "single_step" or (self.channel_kind.per_step and self.secret_length is None)
        return f"{keys}{name}" if native else f"{keys}{written}/{name}"

    def identity(self) -> dict[str, object]:
        """Every field in a form in which equal cells are equal: what a cell does not use is None."""
        fields: dict[str, object] = {name: getattr(self, name) for name in TrainConfig.__annotations__}
        # 32 and 32.0 are one number, but not one text.
        fields.update(
            {name: float(getattr(self, name)) for name, type_ in TrainConfig.__annotations__.items() if type_ is float}
        )
        fields["batch_size"] = self.episodes_per_update
        fields["credit"] = self.resolved_credit
        if self.env_type == "single_step":
            fields.update(credit=None, bit_separator=None)
        if self.algorithm == "sft":
            fields.update(dict.fromkeys(fields_of(*RL_ROLES)))
            return fields
        if self.algorithm == "distill":
            fields.update(dict.fromkeys(fields_of("objective", "loss")))
            fields["group_size"] = self.group_size if self.has_groups else None
        else:
            fields["explore"] = None
        if self.reward_type != "binned_distance":
            fields.update(reward_bins=None, binning=None)
        if self.advantage != "constant_baseline":
            fields["baseline"] = None
        if self.advantage not in _WITH_TEMPERATURE:
            fields["temperature"] = None
        if self.loss != "ppo":
            fields["clip_range"] = None
        return fields

    @chz.init_property
    def cell_id(self) -> str:
        """The cell's name in every table: 16 hex digits, a hash of `identity()`."""
        # A folder is known by what it holds, whatever path leads to it.
        model = self.model if self.model_files is None else None
        return hash_fields({"result_version": RESULT_VERSION, **self.identity(), "model": model})


def hash_fields(fields: Mapping[str, object]) -> str:
    """16 hex digits that stand for some fields and their values.

    A field that is unset, or stands at TrainConfig's default, is left out, so that a new field changes no older name.
    """
    usual = _defaults()
    counted = {name: value for name, value in fields.items() if value is not None and value != usual.get(name)}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _defaults() -> dict[str, object]:
    return {name: find_default(TrainConfig, name) for name in chz.chz_fields(TrainConfig)}


def _code(cell: TrainConfig, given: str | None) -> str | None:
    """The name of the code of a reward function of the user's own; None of all others."""
    is_custom = cell.algorithm != "sft" and isinstance(cell.reward_type, str) and is_address(cell.reward_type)
    return name_code(cell.reward_type) if given is None and is_custom else given


def describe_equal_losses(cells: Iterable[TrainConfig]) -> list[str]:
    """A warning of one line where cells try losses that have the same gradient; nothing where they do not.

    Where a batch is used once, and the learner itself samples it, the ratio of its probabilities to the sampler's is 1,
    and every loss has the gradient of advantage times log-probability.

    >>> describe_equal_losses([TrainConfig(loss="ppo")])
    ['loss=ppo: the same gradient as importance_sampling where a batch is used once (updates_per_batch=1)']
    """
    usual = _defaults()["loss"]
    once = [c for c in cells if c.algorithm == "rl" and c.rollout == "in_process" and c.updates_per_batch == 1]
    tried = sorted({c.loss for c in once} - {usual})
    same = f"the same gradient as {usual} where a batch is used once (updates_per_batch=1)"
    return [f"loss={','.join(tried)}: {same}"] if tried else []


@cache
def fields_of(*roles: str) -> tuple[str, ...]:
    """The fields of TrainConfig that have one of some roles, role by role, as declared.

    >>> fields_of("adapter", "task")
    ('lora_rank', 'lora_alpha', 'algorithm', 'env_type', 'N', 'secret_length', 'num_keys')
    """
    fields = chz.chz_fields(TrainConfig)
    return tuple(name for role in roles for name, field in fields.items() if (field.metadata or {}).get("role") == role)


def shared_fields(config: TrainConfig) -> tuple[object, ...]:
    """The fields of a cell in which all cells of its pack agree with it."""
    return (config.algorithm == "distill", *(getattr(config, name) for name in fields_of(*SHARED_ROLES)))
