"""What a sweep will do: in which packs, on how many trials at once, and where."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memrl.config import TrainConfig
from memrl.sweep.execution import Execution
from memrl.sweep.machine import count_local_gpus
from memrl.sweep.pack_memory import bound_pack_bytes
from memrl.sweep.packing import choose_pack_size, pack_cells
from memrl.sweep.race import Race, name_condition
from memrl.tables.places import AGENTS, CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

Bundles = list[dict[str, float]]
"""What Ray reserves for a trial: the learner's bundle, then those of its engines."""


@dataclass(frozen=True)
class Plan:
    """How the cells that are left will run.

    Attributes:
        packs: the packs, in the order in which they start.
        num_trials: most trials at once.
        device: what they train on: cpu or cuda.
        num_threads: CPU threads of a trial.
        pool: the engines that sample cells with rollout=vllm; empty: there are none.
        colocated: whether a trial is sampled by the engine on its own GPU, in turn with the learner.
        placements: placement groups that the packs take in turn; none: one of the learner's bundle alone.
        adapters: folder where the adapters of cells that end are kept; empty: nowhere.
        checkpoints: address beside which packs leave checkpoints; empty: they leave none.
        reuses_processes: whether a trial's process serves the next one too, which saves imports and the base model.
        races: of which the outpaced runs are stopped.
        first_due: the place of the first pack that is to run; those before it have run.
    """

    packs: Sequence[Sequence[TrainConfig]]
    num_trials: int
    device: str = "cpu"
    num_threads: int = 1
    pool: str = ""
    colocated: bool = False
    placements: Sequence[Bundles] = ()
    adapters: str = ""
    checkpoints: str = ""
    reuses_processes: bool = True
    races: Sequence[Race] = ()
    first_due: int = 0

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for a trial's learner."""
        gpus = {"GPU": 1.0} if self.device == "cuda" else {}
        return {"CPU": float(self.num_threads), **gpus}

    def describe(self) -> str:
        """Packs and trials, in one line."""
        cells = sum(len(pack) for pack in self.packs)
        largest = max((len(pack) for pack in self.packs), default=0)
        return (
            f"{cells:,} cells in {len(self.packs):,} packs of up to {largest:,}, on {self.num_trials:,} {self.device}"
            " trials at once"
        )


def find_left(store: TableStore, cells: Mapping[str, TrainConfig], execution: Execution) -> dict[str, TrainConfig]:
    """The cells that the tables do not hold as finished, by cell_id.

    Those that diverged count as finished unless they are to be tried again, and those that were stopped since their
    rate could no longer be chosen where they would be stopped again.
    """
    ended = store.finished_cell_ids(stopped=execution.stop_conditions)
    ended |= set() if execution.retry_diverged else store.diverged_cell_ids()
    return {cell_id: cell for cell_id, cell in cells.items() if cell_id not in ended}


def plan_packs(cells: Sequence[TrainConfig], execution: Execution, num_cpus: float, num_gpus: float) -> Plan:
    """Packs the cells for the CPUs and GPUs there are.

    Args:
        cells: the cells that are left.
        execution: what the user asked for.
        num_cpus: CPUs of the machine or the cluster.
        num_gpus: its GPUs.
    """
    device = choose_device(execution, num_gpus)
    places = num_gpus if device == "cuda" else num_cpus // execution.num_threads
    num_trials = execution.num_trials or max(1, int(places))
    is_bounded = device == "cpu" and not execution.pack_size
    most_bytes = bound_pack_bytes(num_trials, execution.num_threads) if is_bounded else math.inf
    pack_size = execution.pack_size or choose_pack_size(len(cells), num_trials)
    packs = pack_cells(cells, pack_size, most_bytes, name_condition if execution.stop_conditions else None)
    # Trials run in folders of their own.
    adapters = os.path.abspath(os.path.expanduser(execution.save_adapters)) if execution.save_adapters else ""
    return Plan(packs, num_trials, device, execution.num_threads, adapters=adapters)


def choose_device(execution: Execution, num_gpus: float) -> str:
    """What trials train on: cpu or cuda."""
    return execution.device if execution.device != "auto" else ("cuda" if num_gpus else "cpu")


def describe_addresses(store: TableStore) -> str:
    """Where the tables lie, in lines."""
    titles = {EPISODES_TO_MEMORIZE: "tables: ", CURVES: "        ", AGENTS: "        "}
    return "\n".join(f"{title}{store.table_address(table)}" for table, title in titles.items())


def check_device(execution: Execution) -> None:
    """Refuses a GPU that is not there; what a cluster has shows only once Ray is asked.

    Raises:
        ValueError: device=cuda, and this machine has no GPU.
    """
    if execution.device == "cuda" and execution.address is None and not count_local_gpus():
        raise ValueError("device must be cpu or auto where there is no GPU, got cuda")
