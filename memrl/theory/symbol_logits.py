"""Policy gradient on a sequence whose symbols share nothing: one softmax a symbol, moved by Adam.

What a trained policy needs beyond it is due to its symbols' sharing one adapter (ray interference: Schaul et al. 2019,
arXiv 1904.11455). Adam moves every logit by about its learning rate, whatever the length of the sequence, so that
credit and objective alone decide how episodes grow with it.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as in TrainConfig."""


class SymbolLogits:
    """One softmax over the values of each symbol, per run; see `tabular.TabularPolicy` for what it offers.

    Args:
        radix: values of a symbol.
        length: symbols of a sequence.
        runs: how many run side by side.
    """

    def __init__(self, radix: int, length: int, runs: int) -> None:
        self.num_env_steps, self._updates = length, 0
        self._logits, self._first, self._second = np.zeros((3, runs, length, radix))
        self._probability = softmax(self._logits, axis=-1)

    def sample(self, uniform: Float[np.ndarray, "run episode env_step"]) -> Int[np.ndarray, "run episode env_step"]:
        """Sequences from uniform numbers."""
        steps = self._probability.cumsum(axis=-1)[:, None, :, :-1]
        return (uniform[..., None] >= steps).sum(axis=-1)

    def surprisal(self, guess: Int[np.ndarray, "run episode env_step"]) -> Float[np.ndarray, "run episode env_step"]:
        """-log P of each symbol, nats."""
        chosen = np.take_along_axis(self._probability[:, None], guess[..., None], axis=-1)[..., 0]
        return -np.log(chosen)

    def ascend(
        self,
        guess: Int[np.ndarray, "run episode env_step"],
        weight: Float[np.ndarray, "run episode env_step"],
        rate: Float[np.ndarray, "run"],
    ) -> None:
        """One step of Adam along the sum over episodes of weight times the gradient of log P(symbol)."""
        runs, length, radix = self._logits.shape
        place = np.arange(runs * length).reshape(runs, 1, length) * radix + guess
        pushed = np.bincount(place.ravel(), weights=weight.ravel(), minlength=self._logits.size)
        gradient = pushed.reshape(self._logits.shape) - self._probability * weight.sum(axis=1)[..., None]
        self._updates += 1
        self._first += (1 - _BETAS[0]) * (gradient - self._first)
        self._second += (1 - _BETAS[1]) * (gradient**2 - self._second)
        scale = np.sqrt(self._second / (1 - _BETAS[1] ** self._updates)) + _EPSILON
        self._logits += rate[:, None, None] * self._first / (1 - _BETAS[0] ** self._updates) / scale
        self._probability = softmax(self._logits, axis=-1)

    def log2_probability(self, secrets: Int[np.ndarray, "run env_step"]) -> Float[np.ndarray, "run"]:
        """log2 P(secret) of each run."""
        return -self.surprisal(secrets[:, None]).sum(axis=(1, 2)) / np.log(2.0)

    def keep(self, goes_on: Bool[np.ndarray, "run"]) -> None:
        """Drops the runs that do not go on."""
        for name in ("_logits", "_first", "_second", "_probability"):
            setattr(self, name, getattr(self, name)[goes_on])
