"""PackTrial: Ray Tune's execution of one pack. The only module that imports ray.tune."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from memrl.config import TrainConfig
from memrl.learning.timeline import Timeline
from memrl.rollout.backend import RolloutBackend
from memrl.sweep.pack_run import PackRun, Parcel
from memrl.sweep.rollouts import uses_engines

REPORT_SECONDS = 1.0
"""A trial reports about this often; what has ended by then is kept, whatever happens next."""

PARCEL = "parcel"
"""The key under which a report carries rows; the sweep takes them out before Tune stores the report."""


_ERROR_LENGTH = 500
"""Of what Tune says about a trial that died, the end: what it says last is what happened."""

TRACE = "trace"
"""The key under which a trial's last report carries its timeline; taken out likewise."""


def _connect(pool: str, colocated: bool) -> RolloutBackend:
    from memrl.rollout.actor_pool import VLLMRollout

    return VLLMRollout.connect(pool, colocated=colocated)


class PackTrial(tune.Trainable):
    """Trains the pack that its config names, and reports what has ended about every second.

    One actor serves many trials (`reset_config`), and keeps the base model between them.
    """

    def setup(
        self,
        config: dict[str, Any],
        packs: Sequence[Sequence[TrainConfig]] = (),
        device: str = "cpu",
        num_threads: int = 1,
        pool: str = "",
        colocated: bool = False,
    ) -> None:
        """Starts the first pack of this actor.

        Args:
            config: `pack`, a place in `packs`.
            packs: all packs of the sweep.
            device: where packs train.
            num_threads: CPU threads that torch may use.
            pool: the engines that sample cells with rollout=vllm.
            colocated: whether the engine on this trial's GPU samples, in turn with the learner.
        """
        self._timeline = Timeline()
        with self._timeline.record("load", "pack"):
            import torch

            torch.set_num_threads(num_threads)
            # Adam's moments of a gradient that has vanished would else be denormal numbers, which CPUs are slow at.
            torch.set_flush_denormal(True)
            self._backend = _connect(pool, colocated) if pool else None
        self._alternates = not colocated
        self._packs, self._device = packs, device
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on to another pack in the same process."""
        cells = self._packs[new_config["pack"]]
        backend = self._backend if uses_engines(cells) else None
        timeline, self._timeline = self._timeline, Timeline()
        self._run = PackRun(cells, device=self._device, backend=backend, alternates=self._alternates, timeline=timeline)
        return True

    def step(self) -> dict[str, Any]:
        """Trains for about REPORT_SECONDS.

        Returns:
            `done`, `live` cells, `updates` and `episodes` so far, mean `absorbed_bits` of the pack's cells, and the
            parcel of what has ended since the last report.
        """
        parcel = self._run.advance(REPORT_SECONDS)
        return {
            "done": self._run.finished,
            "live": self._run.live,
            "updates": self._run.updates,
            "episodes": self._run.episodes,
            "absorbed_bits": self._run.absorbed_bits,
            TRACE: self._run.trace if self._run.finished else "",
            PARCEL: parcel,
        }


class Listener(Protocol):
    """Who is told what trials report."""

    def take(self, pack: int, parcel: Parcel, *, live: int, episodes: int) -> None:
        """A trial reported: rows that ended, cells still training, and episodes of the pack so far."""
        ...

    def take_trace(self, pack: int, trace: str) -> None:
        """A pack has ended: the Chrome trace of who did what when."""
        ...

    def fail(self, pack: int, error: str) -> None:
        """A trial died."""
        ...


def tune_packs(
    packs: Sequence[Sequence[TrainConfig]],
    listener: Listener,
    should_stop: Callable[[], bool],
    *,
    num_trials: int,
    placements: Sequence[list[dict[str, float]]],
    device: str = "cpu",
    num_threads: int = 1,
    pool: str = "",
    colocated: bool = False,
    reuse_actors: bool = True,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Runs every pack as a trial and returns when all have ended, or soon after `should_stop` says so.

    Args:
        packs: the packs, in the order in which they start.
        listener: is told what trials report, in this process.
        should_stop: asked several times a second.
        num_trials: most trials at once.
        placements: bundles of the trials' placement groups, which the packs take in turn; in each the learner's bundle
            comes first.
        device: where packs train.
        num_threads: CPU threads of a trial.
        pool: the engines that sample cells with rollout=vllm.
        colocated: whether a trial is sampled by the engine on its own GPU.
        reuse_actors: whether a trial's process serves the next one too, which saves imports and the base model.
        scheduler: one of Tune's own, which may stop trials early. With packs of one cell it judges cells, such as
            ASHAScheduler(time_attr="episodes", metric="absorbed_bits", mode="max"). A cell that it stops leaves no row.
    """
    trainable = tune.with_parameters(
        PackTrial, packs=packs, device=device, num_threads=num_threads, pool=pool, colocated=colocated
    )
    groups = [tune.PlacementGroupFactory(bundles) for bundles in placements]
    place: Any = groups[0] if len(groups) == 1 else lambda config: groups[config["pack"] % len(groups)]
    with tempfile.TemporaryDirectory(prefix="memrl-tune-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, place),
            param_space={"pack": tune.grid_search(list(range(len(packs))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=num_trials, reuse_actors=reuse_actors, scheduler=scheduler
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=storage,
                verbose=0,
                callbacks=[_Relay(listener)],
                stop=_StopWhen(should_stop),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        tuner.fit()


class _StaysHere:
    """What belongs to this process alone: Tune pickles its parts for a restore, which this project never asks for."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Relay(_StaysHere, tune.Callback):
    """Takes parcels out of reports and hands them on."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Hands on a report. Tune lets a callback change it in place, so the rows stay out of Tune's own records."""
        parcel, trace = result.pop(PARCEL), result.pop(TRACE)
        self._listener.take(trial.config["pack"], parcel, live=result["live"], episodes=result["episodes"])
        if trace:
            self._listener.take_trace(trial.config["pack"], trace)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hands on that a trial's process died."""
        # The file on this machine: Tune copies it to where trial.get_error looks only later.
        error = Path(trial.error_file).read_text() if trial.error_file else ""
        self._listener.fail(trial.config["pack"], " ".join(error.split())[-_ERROR_LENGTH:])


class _StopWhen(_StaysHere, tune.Stopper):
    """Ends the whole run when a function says so."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether to end the run now."""
        return self._should_stop()
