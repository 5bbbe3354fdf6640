"""PackTrial: Ray Tune's execution of one pack. The only module that imports ray.tune."""

import logging
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray import tune
from ray.air._internal import usage
from ray.tune.experiment import Trial

from memrl.learning.timeline import Timeline
from memrl.rollout.actor_pool import VLLMRollout
from memrl.rollout.backend import RolloutBackend
from memrl.sweep.checkpoints import Checkpoints, Saver
from memrl.sweep.plan import Plan
from memrl.sweep.race import find_whole
from memrl.sweep.rollouts import uses_engines
from memrl.sweep.scratch import scratch_folder

if TYPE_CHECKING:
    from memrl.sweep.pack_run import PackRun
from memrl.sweep.stretch import Stretch

STRETCH_SECONDS = 1.0
"""A trial tells about this often; what has ended by then is kept, whatever happens next."""

TRIES_MORE = 2
"""A trial that dies is started again, from its checkpoint, this often before its pack is split, or its cell fails."""

STRETCH, TRACE = "stretch", "trace"
"""The keys under which a result carries what a stretch brought and, the last one, its timeline."""

_SETTLE_SECONDS = 2.0
"""A daemon of Ray's that ends takes trials along, and is noticed within this time: then no trial is to blame."""

_ERROR_LENGTH = 500
"""Of what Tune says about a trial that died, the end: what it says last is what happened."""


class PackTrial(tune.Trainable):
    """Trains the pack that its config names, and tells what has ended about every second.

    One actor serves many trials (`reset_config`), and keeps the base model between them.
    """

    def setup(self, config: dict[str, int], plan: Plan | None = None) -> None:
        """Starts the first pack of this actor.

        Args:
            config: `pack`, a place in `plan.packs`.
            plan: of the sweep.
        """
        assert plan is not None, "tune.with_parameters gives it"
        self._plan, self._timeline = plan, Timeline()
        with self._timeline.record("load", "pack"):
            # Here, and not above: the launcher imports this module too, and has no use for torch.
            from memrl.sweep import pack_run

            pack_run.set_up_torch(plan.num_threads)
            self._pack_run = pack_run
            self._backend = VLLMRollout.connect(plan.pool, colocated=plan.colocated) if plan.pool else None
            checkpoints = Checkpoints(plan.checkpoints) if plan.checkpoints else None
            self._checkpoints = checkpoints if checkpoints is not None and checkpoints.are_kept else None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, int]) -> bool:
        """Goes on to another pack in the same process."""
        self._cells, plan = self._plan.packs[new_config["pack"]], self._plan
        self._races = find_whole({cell.cell_id for cell in self._cells}, plan.races)
        # Before the next run is built: two of them may be more than memory holds.
        self._run = None
        timeline, self._timeline = self._timeline, Timeline()
        backend = self._backend if uses_engines(self._cells) else None
        start = partial(
            self._pack_run.start_pack,
            device=plan.device,
            backend=backend,
            alternates=not plan.colocated,
            timeline=timeline,
            adapters=plan.adapters,
        )
        loaded = self._load_run(backend, timeline)
        self._run = loaded or self._pack_run.PackRun.start(self._cells, start, timeline, self._races)
        self._saver = Saver(self._checkpoints, self._cells)
        return True

    def _load_run(self, backend: RolloutBackend | None, timeline: Timeline) -> "PackRun | None":
        """The pack's run as its last checkpoint has it; None where there is none that can be read."""
        if self._checkpoints is None:
            return None
        load_pack, PackRun = self._pack_run.load_pack, self._pack_run.PackRun
        ids = [cell.cell_id for cell in self._cells]
        load = partial(load_pack, cell_ids=ids, backend=backend, timeline=timeline, adapters=self._plan.adapters)
        with self._checkpoints.open(self._cells) as folder:
            try:
                return None if folder is None else PackRun.load(folder, load, ids, timeline, races=self._races)
            except Exception:  # of another version of the code, say: it starts afresh
                traceback.print_exc()
                return None

    def cleanup(self) -> None:
        """Leaves a checkpoint where the sweep is stopped before the pack's end."""
        if self._run is not None and not self._run.finished:
            self._saver.save(self._run.save)

    def step(self) -> dict[str, object]:
        """Trains for about STRETCH_SECONDS.

        Returns:
            what the stretch brought; out of it, for the eye, `live`, `updates`, `episodes` and
            `absorbed_bits`; and `done`.
        """
        assert self._run is not None, "set up before"
        if self._saver.is_due and not self._run.finished:
            self._saver.save(self._run.save)
        stretch = self._run.advance(STRETCH_SECONDS)
        shown = {name: getattr(stretch, name) for name in ("live", "updates", "episodes", "absorbed_bits")}
        trace = self._run.trace if self._run.finished else ""
        return {**shown, "done": self._run.finished, STRETCH: stretch, TRACE: trace}


class Listener(Protocol):
    """Who is told what trials report, in the launcher's process."""

    def take(self, pack: int, stretch: Stretch) -> None:
        """A trial trained for a stretch."""
        ...

    def take_trace(self, pack: int, trace: str) -> None:
        """A pack has ended: the Chrome trace of who did what when."""
        ...

    def fail(self, pack: int, error: str) -> None:
        """A trial died once too often."""
        ...

    def should_stop(self) -> bool:
        """Whether all trials are to end now; asked several times per second."""
        ...


def tune_packs(plan: Plan, listener: Listener) -> None:
    """Runs every pack that is due as a trial; returns when all have ended, or soon after the listener wants to stop.

    Args:
        plan: the packs, and how they run.
        listener: is told what trials report.
    """
    due = list(range(plan.first_due, len(plan.packs)))
    # A part of a pack that has died need not die thrice before it is split in turn; a cell alone has all its tries.
    is_searching = plan.first_due > 0 and any(len(plan.packs[pack]) > 1 for pack in due)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # To count who calls back, Ray would import wandb: seconds, and temporary folders that stay where this is killed.
    usage.tag_callbacks = lambda callbacks: False
    groups = [tune.PlacementGroupFactory(bundles) for bundles in plan.placements or [[plan.resources]]]
    place = groups[0] if len(groups) == 1 else lambda config: groups[config["pack"] % len(groups)]
    with scratch_folder() as storage:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(PackTrial, plan=plan), place),
            param_space={"pack": tune.grid_search(due)},
            tune_config=tune.TuneConfig(max_concurrent_trials=plan.num_trials, reuse_actors=plan.reuses_processes),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(storage),
                verbose=0,
                callbacks=[_Reporting(listener)],
                stop=_Stopping(listener),
                failure_config=tune.FailureConfig(max_failures=0 if is_searching else TRIES_MORE),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        tuner.fit()


class _StaysHere:
    """What belongs to this process alone: Tune pickles its parts for a restore, which this project never asks for."""

    def __getstate__(self) -> dict[str, object]:
        return {}


class _Reporting(_StaysHere, tune.Callback):
    """Takes stretches out of results and hands them on."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: object) -> None:
        """Hands on a stretch. Tune lets a callback change it in place, so the rows stay out of Tune's own records."""
        stretch, trace = result.pop(STRETCH), result.pop(TRACE)
        self._listener.take(trial.config["pack"], stretch)
        if trace:
            self._listener.take_trace(trial.config["pack"], trace)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Hands on that a trial has died once too often."""
        if not self._listener.should_stop():
            time.sleep(_SETTLE_SECONDS)
        # The file on this machine: Tune copies it to where trial.get_error looks only later.
        error = Path(trial.error_file).read_text("utf-8") if trial.error_file else ""
        self._listener.fail(trial.config["pack"], _shorten(" ".join(error.split())))


def _shorten(error: str) -> str:
    """What Tune says about a trial that died, in one line."""
    if "actor died" in error.lower():
        return "its process was killed, or ended by itself: out of memory, or a reward function that ends it"
    return error if len(error) <= _ERROR_LENGTH else f"... {error[-_ERROR_LENGTH:].partition(' ')[2]}"


class _Stopping(_StaysHere, tune.Stopper):
    """Ends the whole run when the listener says so."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether to end the run now."""
        return self._listener.should_stop()
