"""memrl's task as a taskset of verifiers (0.4): one prompt, whose answer is rewarded by a channel of memrl.

With this folder on the path, verifiers' loader finds it as `memrl-secret`:

    from verifiers.v1.utils.loaders import load_taskset, taskset_class
    taskset = load_taskset(SecretConfig(id="memrl-secret", N=64, reward_type="binary"))
"""

import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]

import memrl

__all__ = ["SecretTaskset"]


class SecretData(vf.TaskData):
    """What is hidden, as fields of memrl.Task."""

    N: int
    reward_type: str
    env_type: str
    secret_length: int | None
    seed: int


class SecretTask(vf.Task[SecretData]):
    """The reward of an answer."""

    @vf.reward(weight=1.0)
    async def pay(self, trace: vf.Trace) -> float:
        """What memrl's channel pays for the last reply."""
        data = self.data
        task = memrl.Task(
            N=data.N,
            reward_type=data.reward_type,
            env_type=data.env_type,
            secret_length=data.secret_length,
            seed=data.seed,
        )
        return task.reward([trace.last_reply.strip()])[0]


class SecretConfig(vf.TasksetConfig):
    """Which secrets."""

    N: int = 64
    reward_type: str = "binary"
    env_type: str = "single_step"
    secret_length: int | None = None
    seed: int = 0
    copies: int = 1
    """How often the one prompt is asked."""


class SecretTaskset(vf.Taskset[SecretTask, SecretConfig]):
    """The prompt, so many times."""

    def load(self) -> list[SecretTask]:
        """The tasks: all of them alike, since there is one secret."""
        config = self.config
        hidden = {name: getattr(config, name) for name in ("N", "reward_type", "env_type", "secret_length", "seed")}
        prompt = memrl.Task(**hidden).prompt
        return [SecretTask(SecretData(prompt=prompt, **hidden), config.task) for _ in range(config.copies)]
