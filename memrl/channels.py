"""The channels that memrl ships, one record each; their reward functions stand under the same names in task.reward."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


def _unbounded(N: int, k: int, B: int) -> float:
    return math.inf


@dataclass(frozen=True)
class ChannelKind:
    """What is known of a channel beyond its reward function.

    Attributes:
        label: its name for a reader.
        nominal_bits: bits per episode by the usual count, from the number of secrets, the bits (of a sequence: symbols)
            k of one, and the number of values that bins can pay; inf where the reward is continuous or unknown.
        per_step: whether it pays once per env_step, and not once per episode.
        zero_or_one: whether each of its rewards is 0 or 1.
        greedy_is_optimal: whether no agent needs fewer episodes on average than the greedy one, at every N.
        exploration: rough share of the N secrets that a policy tries, as episodes, before its reward shows the way.
        of_sequence: whether it is there for sequences alone.
        counterpart: the channel that is to sequences what this one is to integers, or the other way round.
    """

    label: str
    nominal_bits: Callable[[int, int, int], float] = _unbounded
    per_step: bool = False
    zero_or_one: bool = False
    greedy_is_optimal: bool = False
    exploration: float = 1.0
    of_sequence: bool = False
    counterpart: str | None = None


SFT = ChannelKind("SFT", lambda N, k, B: math.log2(N), greedy_is_optimal=True, exploration=0.0)
"""The secret itself."""

CUSTOM = ChannelKind("custom")
"""A reward function of the user's own: nothing is known of it but its values."""

REWARDS = {
    "binary": ChannelKind("binary", lambda N, k, B: 1.0, zero_or_one=True, greedy_is_optimal=True),
    "binned_distance": ChannelKind("distance", lambda N, k, B: math.log2(B), exploration=0.1),
    "distance": ChannelKind("distance", greedy_is_optimal=True, exploration=0.1),
    "per_bit": ChannelKind(
        "per bit",
        lambda N, k, B: float(k),
        per_step=True,
        zero_or_one=True,
        greedy_is_optimal=True,
        exploration=0.0,
        counterpart="per_element",
    ),
    "bit_count": ChannelKind(
        "bit count", lambda N, k, B: math.log2(k + 1), exploration=0.05, counterpart="element_count"
    ),
    "per_element": ChannelKind(
        "per element",
        lambda N, k, B: float(k),
        per_step=True,
        zero_or_one=True,
        exploration=0.0,
        of_sequence=True,
        counterpart="per_bit",
    ),
    "element_count": ChannelKind(
        "element count",
        lambda N, k, B: math.log2(k + 1),
        exploration=0.05,
        of_sequence=True,
        counterpart="bit_count",
    ),
}
"""The values of reward_type that need no address.

sft, per_bit and distance tell all in one episode, the fewest there can be, and on binary a guess that misses rules out
one secret whichever it was, so that every order of guesses without repetition does equally well: there the greedy
agent is optimal at every N.
"""


def channel_kind(algorithm: str, reward_type: str) -> ChannelKind:
    """The record of a cell's channel.

    >>> channel_kind("sft", "binary").label, channel_kind("rl", "package.module:function").label
    ('SFT', 'custom')
    """
    return SFT if algorithm == "sft" else REWARDS.get(reward_type, CUSTOM)


def label_channel(cell: Mapping[str, object]) -> str:
    """A channel's name for a reader.

    >>> label_channel({"algorithm": "rl", "reward_type": "binned_distance", "reward_bins": 8, "binning": "log"})
    'distance, 8 log bins'
    >>> label_channel({"algorithm": "rl", "reward_type": "binary", "env_type": "multi_step"})
    'binary, multi-step'

    Args:
        cell: algorithm, env_type, reward_type, reward_bins, binning, credit and secret_length, as a row of the tables
            has them: null (or missing) where the cell has no use for a field.
    """
    told = {name: value for name, value in cell.items() if value is not None and value == value}
    kind = channel_kind(str(told["algorithm"]), str(told.get("reward_type")))
    words = [str(told["reward_type"]) if kind is CUSTOM else kind.label]
    if "reward_bins" in told:
        words.append(f"{told['reward_bins']:g} {str(told['binning']).replace('_', '-')} bins")
    if kind.per_step and told.get("credit", "per_step") != "per_step":
        words.append(f"{str(told['credit']).replace('_', ' ')} credit")
    if "secret_length" in told:
        words.append(f"{told['secret_length']:g} symbols")
    elif told.get("env_type") == "multi_step" and not kind.per_step:
        words.append("multi-step")
    return ", ".join(words)
