"""What a sweep will cost: time, memory and files, from packs that are trained for some seconds, before any is spent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from memrl.config import TrainConfig, shared_fields
from memrl.policy.model_folder import awaits_calibration
from memrl.sweep.execution import Execution
from memrl.sweep.forecast import Forecast
from memrl.sweep.pack_cost import PackCost
from memrl.sweep.packing import estimate_pack_updates
from memrl.sweep.plan import Plan, plan_packs
from memrl.sweep.progress import format_seconds
from memrl.sweep.try_out import find_machine
from memrl.tables.places import has_tables, reference_address
from memrl.tables.schema import EPISODES_TO_MEMORIZE, EPISODES_TO_MEMORIZE_SCHEMA
from memrl.tables.store import TableStore

_SECONDS = 8.0
"""So long packs are trained, in all."""

_MOST_SHAPES = 8
"""So many packs at most."""

_STARTS = 3.0
"""Starting Ray and its trials and writing the report take so many times what a process takes to its first update."""

_CELL_BYTES, _CURVE_BYTES, _REPORT_BYTES = 200, 12, 3_000_000
"""Of a cell's row, of an update's row, and of the page with its figures; as in the committed sweeps."""

_TOLD = [f for f in TrainConfig.__annotations__ if f in EPISODES_TO_MEMORIZE_SCHEMA.names and f != "model_files"]
"""Fields of a cell that a row tells."""


@dataclass(frozen=True)
class Cost:
    """What a sweep will cost.

    Attributes:
        seconds: from the command to its end.
        at_once: trials at once.
        memory_bytes: of one trial, of its GPU where it has one.
        table_bytes: of tables and report.
        checkpoint_bytes: of all checkpoints while it runs.
        adapter_bytes: of the adapters that are kept.
        lengths: the sweep whose runs tell how long runs are; empty: none does.
    """

    seconds: float
    at_once: int
    memory_bytes: int
    table_bytes: float
    checkpoint_bytes: float
    adapter_bytes: float
    lengths: str


def describe_cost(grid: str, left: Sequence[TrainConfig], store: TableStore, execution: Execution) -> list[str]:
    """What a launch would run, and what that would take, in lines.

    Args:
        grid: the sweep's name.
        left: the cells that are left, one at least.
        store: the sweep's tables.
        execution: where and how they would run.

    Raises:
        ValueError: a pack can't be trained.
        StartError: the cluster can't be joined.
    """
    with find_machine(execution) as machine:
        plan = plan_packs(left, execution, machine.num_cpus, machine.num_gpus)
        lines = [f"to run: {plan.describe()}"]
        waiting = sorted({_name_model(cell.model) for cell in left if awaits_calibration(cell.model)})
        if waiting:
            return [*lines, f"time: not known before {', '.join(waiting)} is calibrated, which the sweep does first"]
        if plan.device == "cuda" and not machine.num_gpus:
            return [*lines, "time: not known before a node with a GPU is up"]
        packs = choose_packs(plan.packs, plan.num_trials)
        costs = machine.try_packs(packs, plan, _SECONDS)
    problem = next((cost.problem for cost in costs if cost.problem), "")
    if problem:
        raise ValueError(f"cells must be such that they can train, got: {problem}")
    cost = forecast_cost(plan, [(pack[0], cost) for pack, cost in zip(packs, costs, strict=True)], grid, store)
    return [*lines, *_describe(cost, plan, len(costs))]


def choose_packs(packs: Sequence[Sequence[TrainConfig]], fewest: int) -> list[Sequence[TrainConfig]]:
    """One pack of each shape, most at work first and eight at most; more of a shape where these are too few.

    Packs are of one shape whose first cells agree in what a base model's pass shares, rank, algorithm and env_type.

    Args:
        packs: all of them.
        fewest: so many, where there are so many.
    """

    def shape(pack: Sequence[TrainConfig]) -> str:
        return repr((shared_fields(pack[0]), pack[0].lora_rank, pack[0].algorithm, pack[0].env_type))

    shapes = [list(group) for _, group in groupby(sorted(packs, key=shape), key=shape)]
    shapes.sort(key=lambda group: -sum(estimate_pack_updates(pack) for pack in group))
    chosen = [group[0] for group in shapes][:_MOST_SHAPES]
    others = [pack for group in shapes for pack in group[1:]]
    return chosen + others[: max(0, min(fewest, _MOST_SHAPES) - len(chosen))]


def forecast_cost(plan: Plan, costs: Sequence[tuple[TrainConfig, PackCost]], grid: str, store: TableStore) -> Cost:
    """What a plan will take, by what some of its packs took and by how long runs of an earlier sweep were.

    Args:
        plan: the sweep's.
        costs: what packs took, each with the first of its cells.
        grid: the sweep's name.
        store: its tables.
    """
    forecast = Forecast()
    forecast.begin(plan.packs, plan.num_trials)
    for cell, cost in costs:
        forecast.learn_cost(cell, cost.live, cost.updates, cost.seconds)
    lengths = _learn_lengths(forecast, plan, grid, store)
    num_cells, took = sum(map(len, plan.packs)), [cost for _, cost in costs]
    at_once = min(plan.num_trials, len(plan.packs))
    adapter = max(cost.checkpoint_bytes / max(1, cost.live) / 3 for cost in took)
    return Cost(
        (forecast.seconds_left() or 0.0) + _STARTS * max(cost.start_s for cost in took),
        at_once,
        max(cost.memory_bytes for cost in took),
        _CELL_BYTES * num_cells + _CURVE_BYTES * forecast.expect_updates() + _REPORT_BYTES,
        at_once * max(cost.checkpoint_bytes for cost in took),
        adapter * num_cells if plan.adapters else 0.0,
        lengths,
    )


def _learn_lengths(forecast: Forecast, plan: Plan, grid: str, store: TableStore) -> str:
    """Looks for a sweep of the same base models whose runs tell how long such runs are; returns its address."""
    models = {_name_model(cell.model) for pack in plan.packs for cell in pack}
    places = dict.fromkeys((store.address, reference_address(grid), reference_address("bitrate")))
    for address in (place for place in places if "://" in place or has_tables(place)):
        runs = list(_list_runs(TableStore(address), models))
        for cell, batches in runs:
            forecast.learn_length(cell, batches)
        if runs:
            return address
    return ""


def _list_runs(store: TableStore, models: set[str]) -> Iterable[tuple[TrainConfig, int]]:
    """The cells of some base models that have ended, and the batches that they used."""
    for row in store.read(EPISODES_TO_MEMORIZE).to_pylist():
        # A reward function of the user's own may be gone.
        is_told = row["status"] != "failed" and ":" not in (row["reward_type"] or "")
        if is_told and _name_model(row["model"]) in models:
            cell = TrainConfig(**{name: row[name] for name in _TOLD if row[name] is not None})
            yield cell, row["updates"] // cell.updates_per_batch


def _name_model(model: str) -> str:
    """The model's name without that of its calibration."""
    return model.partition("@")[0]


def _describe(cost: Cost, plan: Plan, num_measured: int) -> list[str]:
    """Time, memory and files, a line each."""
    lengths = f"run lengths of {cost.lengths}" if cost.lengths else "a rule of thumb for run lengths"
    unit, each = ("GPU", 1) if plan.device == "cuda" else ("core", plan.num_threads)
    hours = cost.at_once * each * cost.seconds / 3600
    paid = f"{hours:,.1f} {unit}-hours" if hours >= 0.1 else f"{60 * hours:.1f} {unit}-minutes"
    memory = (
        f"{_tell(cost.memory_bytes)} a trial, {_tell(cost.at_once * cost.memory_bytes)} for {cost.at_once:,} at once"
    )
    kept = f", {_tell(cost.adapter_bytes)} of adapters" if cost.adapter_bytes else ""
    return [
        f"time: about {format_seconds(cost.seconds)}, {paid}; by {num_measured} packs that were trained for"
        f" {_SECONDS:.0f} s just now, and {lengths}",
        f"memory: {memory}",
        f"disk: {_tell(cost.table_bytes)} of tables and report{kept}; {_tell(cost.checkpoint_bytes)} of checkpoints"
        " while it runs",
    ]


def _tell(num_bytes: float) -> str:
    """Bytes as MB or GB.

    >>> _tell(3.2e6), _tell(163e6), _tell(4.56e9)
    ('3.2 MB', '163 MB', '4.6 GB')
    """
    number, unit = (num_bytes / 1e9, "GB") if num_bytes >= 1e9 else (num_bytes / 1e6, "MB")
    return f"{number:,.{int(number < 10)}f} {unit}"
