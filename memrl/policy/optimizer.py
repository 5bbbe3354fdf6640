"""Adam for a pack: every cell has moments, a step count and constants of its own.

Source: Kingma and Ba, Adam, 2015, arXiv 1412.6980, Algorithm 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from memrl.config import TrainConfig
from memrl.policy.kernels import load_kernels


class PackedAdam:
    """Adam on a flat tensor of K cells, a few whole-tensor operations per update.

    Args:
        configs: one per cell: learning rate, both betas, epsilon.
        like: the tensor that it will update, (cells, parameters).

    Attributes:
        moments: running means of the gradient (`moment1`) and of its square (`moment2`), by name; each laid out like
            the parameters, (cells, parameters).
        num_updates: updates made by each cell, int64 (cells,).
    """

    def __init__(self, configs: Sequence[TrainConfig], like: Tensor) -> None:
        constants = [[c.learning_rate, c.adam_beta1, c.adam_beta2, c.adam_epsilon] for c in configs]
        self._constants = torch.tensor(constants, dtype=torch.float64, device=like.device)
        self.num_updates = np.zeros(len(configs), dtype=np.int64)
        self.moments = {name: torch.zeros_like(like) for name in ("moment1", "moment2")}

    def update(self, parameters: Tensor, gradient: Tensor) -> None:
        """Moves every cell's parameters by its own gradient, in place; clears the gradient.

        Args:
            parameters: (cells, parameters).
            gradient: same shape.
        """
        self.num_updates += 1
        t = torch.from_numpy(self.num_updates).to(self._constants)
        rate, beta1, beta2, epsilon = self._constants.unbind(1)
        correction2 = (1.0 - beta2**t).sqrt()
        step_size = rate / (1.0 - beta1**t) * correction2
        constants = (1 - beta1, beta2, 1 - beta2, epsilon * correction2, -step_size)
        tensors = (parameters, gradient, self.moments["moment1"], self.moments["moment2"])
        library = load_kernels(parameters.dtype) if parameters.device.type == "cpu" else None
        if library is None:
            _update_in_torch(*tensors, constants)
        else:
            library.update_adam(*parameters.shape, torch.stack(constants, 1).to(parameters), *tensors)

    def reset(self, cell: int) -> None:
        """Lets one cell start anew."""
        self.num_updates[cell] = 0
        for moment in self.moments.values():
            moment[cell] = 0.0

    def keep(self, cells: np.ndarray, moments: dict[str, Tensor]) -> None:
        """Shrinks to the given cells, whose moments the caller has laid out as its parameters."""
        self.moments = moments
        self.num_updates = self.num_updates[cells]
        self._constants = self._constants[torch.from_numpy(cells).to(self._constants.device)]


def _update_in_torch(
    parameters: Tensor, gradient: Tensor, moment1: Tensor, moment2: Tensor, constants: Sequence[Tensor]
) -> None:
    """Adam's update in place, (cells, parameters), with each cell's constants, (cells,); clears the gradient.

    The constants are 1 - beta1, beta2, 1 - beta2, epsilon and minus the step size, the last two corrected for bias.
    """
    decay1, keep2, decay2, epsilon, negative_step = (c.to(parameters)[:, None] for c in constants)
    moment1.lerp_(gradient, decay1)
    moment2.mul_(keep2).addcmul_(gradient * decay2, gradient)
    denominator = torch.sqrt(moment2, out=gradient).add_(epsilon)
    parameters.addcmul_(torch.div(moment1, denominator, out=denominator), negative_step)
    gradient.zero_()
