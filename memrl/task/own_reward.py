"""Reward functions of the user's own: found by their address, and held to what a channel is."""

import importlib
import multiprocessing
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from memrl.channels import REWARDS
from memrl.config import TrainConfig
from memrl.errors import tell_error

Numbers = np.ndarray | np.generic
"""An array, or the scalar that numpy makes of one without axes."""

RewardFunction = Callable[[np.ndarray, np.ndarray, int], Numbers]
"""(guess, secret, N) to rewards; arguments broadcast against each other.

Of integers a per-step channel adds a last axis of k. Of sequences the arguments have a last axis of symbols, each in
0 .. N-1, which a per-step channel keeps and any other does away with.
"""


class RewardError(ValueError):
    """A reward function of the user's own did not pay as it must: the fault of its cells alone. One line."""


@dataclass(frozen=True)
class OwnReward:
    """A reward function of the user's own, held to what a channel is: pure, and one finite reward a (guess, secret).

    Attributes:
        address: package.module:function.
        function: what lies there.
        of_sequence: whether guesses and secrets have a last axis of symbols.
    """

    address: str
    function: RewardFunction
    of_sequence: bool

    def __call__(self, guess: np.ndarray, secret: np.ndarray, N: int) -> Float[np.ndarray, "..."]:
        """See `RewardFunction`.

        Raises:
            RewardError: the function raises, ends its process by sys.exit, writes into its arguments, or returns
                anything but one finite number a (guess, secret).
        """
        shape = np.broadcast_shapes(guess.shape, secret.shape)
        shape = shape[:-1] if self.of_sequence else shape
        try:
            rewards = np.asarray(self.function(_protect(guess), _protect(secret), N), dtype=np.float64)
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
            told = f"{type(error).__name__}: {tell_error(error)}"
            raise RewardError(f"{self.address} raised {told} ({where})") from error
        rule = f"{self.address} must return one finite reward a (guess, secret)"
        if rewards.shape != shape:
            raise RewardError(f"{rule}, got shape {rewards.shape} for {shape}")
        if not np.isfinite(rewards).all():
            raise RewardError(f"{rule}, got NaN or infinity at N={N}")
        return rewards


def _protect(array: np.ndarray) -> np.ndarray:
    """A view of an array that can't be written."""
    view = array.view()
    view.flags.writeable = False
    return view


def import_reward(config: TrainConfig) -> OwnReward:
    """The reward function that a cell names, tried on two secrets.

    Raises:
        ValueError: it can't be imported, or is no finite function of (guess, secret, N).
    """
    address = config.reward_type
    module, _, name = address.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"reward_type must name an importable function, got {address!r} ({error!r})") from error
    reward = OwnReward(address, function, config.secret_length is not None)
    guess, secret = np.arange(2)[:, None], np.arange(2)[None, :]
    if config.secret_length is not None:
        guess, secret = (np.repeat(v[..., None], config.secret_length, axis=-1) for v in (guess, secret))
    try:
        reward(guess, secret, config.N)
    except RewardError as error:
        rule = "reward_type must take (guess, secret, N) arrays and return one finite reward a (guess, secret)"
        raise ValueError(f"{rule}, got {error}") from error
    return reward


def check_own_reward(config: TrainConfig) -> None:
    """Refuses a reward function of the user's own that is none, called in a process of its own, which it may end.

    Raises:
        ValueError: it can't be imported, is no finite function of (guess, secret, N), or ends the process.
    """
    if config.reward_type in REWARDS:
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_try_reward, config).result()
        except BrokenProcessPool:
            rule = "reward_type must name a function that returns"
            raise ValueError(f"{rule}, got {config.reward_type!r}, which ends its process") from None


def _try_reward(config: TrainConfig) -> None:
    import_reward(config)
