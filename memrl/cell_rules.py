"""Which cells make sense: the limits of each field, and what must fit together."""

import math
from string import Formatter
from typing import TYPE_CHECKING, Literal, get_args

from chz.tiepin import is_subtype_instance

from memrl.channels import REWARDS
from memrl.limits import (
    MOST_EPISODES,
    MOST_KEYED_BITS,
    MOST_KEYS,
    MOST_LISTED,
    MOST_OBSERVER_BYTES,
    MOST_PROMPT,
    MOST_RANK,
    MOST_SECRETS,
    MOST_SIGNAL_BITS,
    MOST_UPDATES,
)
from memrl.model_files import name_files
from memrl.reward_code import is_address, name_code
from memrl.suggest import did_you_mean, suggest_close

if TYPE_CHECKING:
    from memrl.config import TrainConfig

NEEDS_NO_PEER = ("constant_baseline", "rejection")
"""Advantages that an episode has without others to compare it with."""

_FOR_ZERO_OR_ONE = ("rejection", "maxrl")
_INTEGER_LIMIT = 1 << 63
_EPISODE_BYTES = 200


def check_cell(cell: "TrainConfig") -> None:
    """Says what is wrong with a cell.

    Raises:
        ValueError: a field, or two fields together, make no sense; the message is one line.
    """
    # Types stand before the other rules, which compare numbers with numbers.
    for check in (
        _check_types,
        _check_size,
        _check_model,
        _check_prompt,
        _check_task,
        _check_channel,
        _check_learning,
        _check_objective,
    ):
        check(cell)


def _check_types(cell: "TrainConfig") -> None:
    for name, annotation in type(cell).__annotations__.items():
        value = getattr(cell, name)
        is_right = type(value) is annotation or is_subtype_instance(value, annotation)
        if isinstance(value, bool) or not is_right:
            choices = list_choices(annotation)
            rule = f"be one of {', '.join(choices)}" if choices else f"be of type {_type_name(annotation)}"
            raise ValueError(f"{name} must {rule}, got {value!r}{suggest_close(value, choices)}")
        require(not isinstance(value, float) or math.isfinite(value), name, "be finite", value)
        if isinstance(value, int):
            fits = -_INTEGER_LIMIT <= value < _INTEGER_LIMIT
            require(fits, name, "lie below 2^63", f"an integer of {value.bit_length()} bits")


def _check_size(cell: "TrainConfig") -> None:
    # Nothing of a cell's size is built before this has passed.
    if cell.N > MOST_SECRETS:
        raise ValueError(
            f"N must be at most {MOST_SECRETS:,}, got {cell.N}, which has {cell.N**2:.2g} pairs of guess and secret"
        )
    if cell.secret_length is not None:
        require(cell.secret_length >= 1, "secret_length", "be at least 1", cell.secret_length)
        rule = f"be at most {int(MOST_SIGNAL_BITS / math.log2(max(cell.N, 2)))} at N={cell.N}"
        told = f"{cell.secret_length}, whose secret has {cell.secret_bits:.4g} bits"
        require(cell.secret_bits <= MOST_SIGNAL_BITS, "secret_length", f"{rule} ({MOST_SIGNAL_BITS} bits)", told)
        rule = "be unset on env_type=single_step (use multi_step, one env_step per symbol)"
        require(cell.env_type == "multi_step", "secret_length", rule, cell.secret_length)
    if cell.num_keys is not None:
        _check_keys(cell, cell.num_keys)
    if cell.episodes_per_update > MOST_EPISODES:
        name = "group_size" if cell.batch_size is None else "batch_size"
        told = f"{cell.episodes_per_update}, which take {cell.episodes_per_update * _EPISODE_BYTES / 1e9:,.0f} GB"
        raise ValueError(f"{name} must be at most {MOST_EPISODES:,}, got {told}")
    rule = f"be at most {MOST_RANK:,} (a rank above a layer's width adds nothing but memory)"
    require(cell.lora_rank <= MOST_RANK, "lora_rank", rule, cell.lora_rank)
    require(cell.n_steps <= MOST_UPDATES, "n_steps", f"be at most {MOST_UPDATES:,}", cell.n_steps)


def _check_keys(cell: "TrainConfig", num_keys: int) -> None:
    require(num_keys >= 1, "num_keys", "be at least 1", num_keys)
    require(num_keys <= MOST_KEYS, "num_keys", f"be at most {MOST_KEYS:,}", num_keys)
    where = f"at N={cell.N}" + ("" if cell.secret_length is None else f" and secret_length={cell.secret_length}")
    most, told = (
        int(MOST_KEYED_BITS / cell.secret_bits),
        f"{num_keys}, whose secrets have {cell.signal_bits:,.0f} bits",
    )
    require(num_keys <= most, "num_keys", f"be at most {most:,} {where} ({MOST_KEYED_BITS:,} bits)", told)
    # The observer keeps two flags for each secret that it lists, or one for each value of each symbol.
    is_listed = cell.secret_length is None or cell.num_secrets <= MOST_LISTED
    each = 2 * cell.num_secrets if is_listed else cell.N * (cell.secret_length or 1)
    most, told = MOST_OBSERVER_BYTES // each, f"{num_keys}, whose observer takes {num_keys * each / 2**30:.3g} GiB"
    require(num_keys <= most, "num_keys", f"be at most {most:,} {where} (4 GiB)", told)
    require(cell.secret is None, "secret", "be unset where there are keys", cell.secret)
    require(cell.rollout == "in_process", "rollout", "be in_process where there are keys", cell.rollout)


def _check_model(cell: "TrainConfig") -> None:
    if cell.model_files is None:
        return
    now = name_files(cell.model)
    require(now in (None, cell.model_files), "model_files", f"be {now}, what {cell.model} holds now", cell.model_files)


def _check_prompt(cell: "TrainConfig") -> None:
    length = len(cell.prompt)
    require(length <= MOST_PROMPT, "prompt", f"have at most {MOST_PROMPT:,} characters", length)
    try:
        blanks = [blank for _, *blank in Formatter().parse(cell.prompt) if blank[0] is not None]
    except ValueError as error:
        raise ValueError(f"prompt must have its braces in pairs, got {cell.prompt[:80]!r} ({error})") from None
    known = ["N", "last"] if cell.num_keys is None else ["N", "last", "key"]
    wrong = [blank[0] for blank in blanks if blank not in [[name, "", None] for name in known]]
    rule = f"leave only {' and '.join(f'{{{name}}}' for name in known)} to be filled in"
    require(not wrong, "prompt", rule, f"{{{', '.join(map(str, wrong))}}}")


def _check_task(cell: "TrainConfig") -> None:
    require(cell.N >= 2, "N", "be at least 2", cell.N)
    last = cell.num_secrets - 1
    require(cell.secret is None or 0 <= cell.secret <= last, "secret", f"lie in 0 .. {last}", cell.secret)
    require(cell.seed >= 0, "seed", "be at least 0", cell.seed)
    stop, most = cell.stop_probability, cell.max_episodes
    require(0.0 < stop < 1.0, "stop_probability", "lie strictly between 0 and 1", stop)
    require(cell.n_steps >= 1, "n_steps", "be at least 1", cell.n_steps)
    every = cell.measure_every
    require(every is None or every >= 1, "measure_every", "be at least 1", every)
    rule = "be unset where there are no keys: one secret is measured at every batch"
    require(every is None or cell.num_keys is not None, "measure_every", rule, every)
    require(most is None or most >= 1, "max_episodes", "be at least 1", most)
    least = cell.episodes_per_update
    rule = f"be at least {least}, the episodes of one update"
    require(most is None or most >= least, "max_episodes", rule, most)


def _check_channel(cell: "TrainConfig") -> None:
    if cell.algorithm == "sft":
        return
    if cell.reward_type not in REWARDS and not is_address(cell.reward_type):
        got = f"{cell.reward_type!r}{did_you_mean(cell.reward_type, REWARDS)}"
        raise ValueError(f"reward_type must name a channel or package.module:function, got {got}")
    if cell.reward_code is not None:
        _check_code(cell, cell.reward_code)
    if cell.reward_type == "binned_distance":
        require(cell.reward_bins is not None, "reward_bins", "be set for reward_type=binned_distance", None)
        require(2 <= (cell.reward_bins or 0) <= cell.N, "reward_bins", f"lie in 2 .. N={cell.N}", cell.reward_bins)
    if cell.channel_kind.per_step:
        rule = f"not be {cell.reward_type} on env_type=single_step (use multi_step)"
        require(cell.env_type == "multi_step", "reward_type", rule, cell.reward_type)
    other = cell.channel_kind.counterpart
    if other is not None and cell.channel_kind.of_sequence != (cell.secret_length is not None):
        which = "an integer" if cell.secret_length is None else "a sequence"
        require(False, "reward_type", f"be {other} where the secret is {which}", cell.reward_type)


def _check_code(cell: "TrainConfig", code: str) -> None:
    if cell.reward_type in REWARDS:
        raise ValueError(f"reward_code must be left out where the channel is memrl's own, got {code}")
    now = name_code(cell.reward_type)
    if now is not None and code != now:
        raise ValueError(f"reward_code must be {now}, which is the code of {cell.reward_type} now, got {code}")


def _check_learning(cell: "TrainConfig") -> None:
    require(cell.lora_rank >= 1, "lora_rank", "be at least 1", cell.lora_rank)
    require(cell.lora_alpha > 0, "lora_alpha", "be positive", cell.lora_alpha)
    require(cell.learning_rate > 0, "learning_rate", "be positive", cell.learning_rate)
    require(0 <= cell.adam_beta1 < 1, "adam_beta1", "lie in [0, 1)", cell.adam_beta1)
    require(0 <= cell.adam_beta2 < 1, "adam_beta2", "lie in [0, 1)", cell.adam_beta2)
    require(cell.adam_epsilon > 0, "adam_epsilon", "be positive", cell.adam_epsilon)
    require(cell.batch_size is None or cell.batch_size >= 1, "batch_size", "be at least 1", cell.batch_size)
    require(cell.updates_per_batch >= 1, "updates_per_batch", "be at least 1", cell.updates_per_batch)
    if cell.algorithm == "distill":
        if cell.secret_length is not None:
            most = int(math.log(MOST_LISTED, cell.N) + 1e-9)
            rule = f"be at most {most} at N={cell.N} for algorithm=distill, which lists every secret"
            require(cell.num_secrets <= MOST_LISTED, "secret_length", rule, cell.secret_length)
        require(cell.rollout == "in_process", "rollout", "be in_process for algorithm=distill", cell.rollout)
        alone = cell.explore != "greedy" or cell.episodes_per_prompt == 1
        name = "batch_size" if cell.num_keys is None else "group_size"
        require(alone, name, "be 1 for explore=greedy, which asks one best question", cell.episodes_per_prompt)
    if not cell.has_groups:
        return
    require(cell.group_size >= 1, "group_size", "be at least 1", cell.group_size)
    multiple = cell.batch_size is None or cell.batch_size % cell.group_size == 0
    require(multiple, "batch_size", f"be a multiple of group_size={cell.group_size}", cell.batch_size)
    if cell.algorithm != "rl":
        return
    require(cell.clip_range > 0, "clip_range", "be positive", cell.clip_range)
    require(
        cell.group_size >= 2 or cell.advantage in NEEDS_NO_PEER,
        "group_size",
        f"be at least 2 for advantage={cell.advantage}, whose baseline is the group's (or use constant_baseline)",
        cell.group_size,
    )


def _check_objective(cell: "TrainConfig") -> None:
    require(cell.temperature > 0, "temperature", "be positive", cell.temperature)
    require(cell.entropy_bonus >= 0, "entropy_bonus", "be at least 0", cell.entropy_bonus)
    require(cell.kl_penalty >= 0, "kl_penalty", "be at least 0", cell.kl_penalty)
    if cell.algorithm == "sft" or cell.advantage not in _FOR_ZERO_OR_ONE:
        return
    kind = cell.channel_kind
    sums = kind.per_step and cell.resolved_credit != "per_step"
    rule = "be exponential_weights or group_centered where what an env_step answers for is not 0 or 1"
    require(kind.zero_or_one and not sums, "advantage", rule, cell.advantage)
    require(
        cell.malformed_reward == 0,
        "malformed_reward",
        f"be 0 for advantage={cell.advantage}",
        cell.malformed_reward,
    )


def _type_name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("None", "unset")


def require(holds: bool, name: str, rule: str, value: object) -> None:
    """Raises a ValueError that says the rule of a field, unless it holds."""
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}")


def list_choices(annotation: object) -> tuple[str, ...]:
    """The values that a Literal, or an optional one, allows; () for any other type."""
    options = [annotation, *get_args(annotation)]
    return next((get_args(o) for o in options if getattr(o, "__origin__", None) is Literal), ())
