"""Everything that a report says of a sweep, computed once."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from memrl.analysis.cells import IDENTITY, TUNED, find_trainer, measured_cells, number_groups, read_cells
from memrl.analysis.curves import (
    CURVE_COLUMNS,
    Curves,
    collect_curves,
    count_wells,
    quartile_curves,
    when_observer_knew,
)
from memrl.analysis.estimate import (
    build_ledger,
    compare_with_agents,
    count_collapses,
    describe_choices,
    estimate_groups,
)
from memrl.analysis.leak import judge_leaks, leak_curve
from memrl.analysis.lengths import estimate_lengths
from memrl.analysis.objectives import (
    CHOSEN,
    REPORTED,
    USUAL,
    estimate_objectives,
    find_edges,
    hold_out_objectives,
    join_distilled,
    split_objectives,
)
from memrl.analysis.scaling import estimate_scaling
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.style import describe_channels, sort_for_readers
from memrl.analysis.verdicts.capacity import judge_capacity
from memrl.analysis.verdicts.interference import judge_interference
from memrl.analysis.verdicts.judge import judge_hypotheses
from memrl.analysis.verdicts.verdict import Verdict
from memrl.tables.launches import read_launches
from memrl.tables.schema import CURVES, Row
from memrl.tables.store import TableStore

MAP_AXES = ("lora_rank", "learning_rate")


@dataclass(frozen=True)
class Provenance:
    """What made the rows.

    Attributes:
        versions: versions of each library, all that occur.
        created: when the first and the last row were written, UTC.
        busy_s: wall time of all cells, each with its share of its pack's.
        revisions: git revisions of the code.
        seeds: the seeds that occur, as text.
        shared: fields that are the same in every trained cell.
        launches: notes of the launches, oldest first, where there are any (memrl.tables.launches).
    """

    versions: dict[str, list[str]]
    created: tuple[str, str]
    busy_s: float
    revisions: list[str]
    seeds: str
    shared: dict[str, str]
    launches: list[Row]


@dataclass(frozen=True)
class Summary:
    """A sweep's answers, as data frames whose channels are called as readers call them, in reading order.

    Attributes:
        address: of the tables.
        trainer: who trained the policies: memrl (`lora`), or another trainer where memrl trained none.
        num_planned: cells of the whole sweep, None where not known.
        num_finished: cells of trained policies that have a row, failed ones included.
        num_stopped: those of them that were stopped since their learning rate could no longer be chosen.
        failed: the failed ones: cell_id, channel, N, learning_rate, lora_rank, seed, error.
        num_secrets: secrets that were drawn for trained policies, one for each N and seed.
        channels: describe_channels of trained policies.
        estimates: one row an (agent, channel, N, model, objective), at settings chosen on other secrets:
            estimate_groups, compare_with_agents and describe_choices side by side.
        conditions: one row per setting of every agent: estimate_groups.
        maps: one row a (channel, N, model, rank, learning rate) of trained policies under their chosen objective:
            estimate_groups.
        ledger: build_ledger of trained policies at chosen settings.
        learning: quartile_curves of the same.
        collapse: count_collapses over all trained cells but the stopped ones, by channel, objective and learning rate.
        lost: count_collapses of trained policies at chosen settings, with the share of env_steps in the well.
        objectives: estimate_objectives of trained policies.
        edges: find_edges of the same.
        scaling: estimate_scaling of all agents at chosen settings.
        lengths: estimate_lengths of all agents on sequences.
        leaks: judge_leaks over all trained cells.
        prior: one row an (env_type, N, model): prior_kl_bits and prior_well_formed, the worst of its cells.
        verdicts: on the hypotheses that there is data for.
        provenance: what made the rows.
    """

    address: str
    trainer: str
    num_planned: int | None
    num_finished: int
    num_stopped: int
    failed: pd.DataFrame
    num_secrets: int
    channels: pd.DataFrame
    estimates: pd.DataFrame
    conditions: pd.DataFrame
    maps: pd.DataFrame
    ledger: pd.DataFrame
    learning: pd.DataFrame
    collapse: pd.DataFrame
    lost: pd.DataFrame
    objectives: pd.DataFrame
    edges: pd.DataFrame
    scaling: pd.DataFrame
    lengths: pd.DataFrame
    leaks: pd.DataFrame
    prior: pd.DataFrame
    verdicts: list[Verdict]
    provenance: Provenance

    @property
    def provisional(self) -> str:
        """What stands after a verdict while cells are missing."""
        return ", provisional" if self.is_unfinished else ""

    @property
    def is_unfinished(self) -> bool:
        """Whether cells of the sweep are known to be missing."""
        return self.num_planned is not None and self.num_finished < self.num_planned


def summarize_sweep(address: str, num_planned: int | None = None) -> Summary:
    """Reads the tables and computes every number of the report.

    Args:
        address: of the tables.
        num_planned: cells of the whole sweep, where the caller knows.

    Raises:
        ValueError: there is no finished cell of a trained policy at the address.
    """
    store = TableStore(address)
    trainer = find_trainer(store)
    table = read_cells(store, trainer)
    trained = join_distilled(table[(table["agent"] == "lora").to_numpy()])
    if trained.empty:
        raise ValueError(f"results must hold at least one finished cell, got none at {address}")
    cells = join_distilled(measured_cells(table))
    lora = cells[(cells["agent"] == "lora").to_numpy()].reset_index(drop=True)
    if lora.empty:
        raise ValueError(f"results must hold a cell that measured something, got {len(trained)} failed at {address}")
    channels = describe_channels(lora)
    cells, lora, trained = (_use_labels(rows, channels) for rows in (cells, lora, trained))
    curves = collect_curves(store.read(CURVES, list(CURVE_COLUMNS)), lora)
    chosen = hold_out_objectives(cells)
    estimates = compare_with_agents(estimate_groups(chosen, REPORTED))
    of_objectives = _follow_objectives(chosen[(chosen["agent"] == "lora").to_numpy()], curves, lora)
    stopped = (lora["status"] == "stopped").to_numpy()
    whole = lora[~stopped].reset_index(drop=True)
    failed = ["cell_id", "channel", "N", "learning_rate", "lora_rank", "seed", "error"]
    tables = {
        "failed": trained.loc[(trained["status"] == "failed").to_numpy(), failed],
        "estimates": pd.concat([estimates, describe_choices(chosen, REPORTED)], axis=1),
        "conditions": estimate_groups(cells, (*IDENTITY, *_varying(cells, TUNED))),
        "maps": _estimate_maps(lora),
        **of_objectives,
        "collapse": count_collapses(whole, ("channel", "objective_name", "learning_rate")),
        "objectives": estimate_objectives(lora),
        "edges": find_edges(chosen[(chosen["agent"] == "lora").to_numpy()], lora),
        "scaling": _scale_objectives(chosen),
        "leaks": judge_leaks(leak_curve(curves, lora)),
    }
    return Summary(
        address=address,
        trainer=trainer,
        num_planned=num_planned,
        num_finished=len(trained),
        num_stopped=int(stopped.sum()),
        num_secrets=len(lora.drop_duplicates(["N", "seed"])),
        channels=channels,
        prior=_worst_priors(lora),
        verdicts=_judge_objectives(lora, curves),
        provenance=_trace_provenance(trained, read_launches(store)),
        lengths=estimate_lengths(cells),
        **{name: sort_for_readers(table, channels["label"]) for name, table in tables.items()},
    )


def _follow_objectives(chosen: pd.DataFrame, curves: Curves, lora: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What curves tell of the chosen cells, objective by objective: ledger, learning, lost."""
    found: dict[str, list[pd.DataFrame]] = {"ledger": [], "learning": [], "lost": []}
    for _, own in chosen.groupby("objective", sort=False):
        own = own.reset_index(drop=True)
        rows = _curves_of(curves, lora, own)
        group, keys = number_groups(own, REPORTED)
        known = when_observer_knew(rows, own["signal_bits"].to_numpy())
        found["ledger"].append(build_ledger(own, *known, by=REPORTED))
        found["learning"].append(quartile_curves(rows, group, keys))
        found["lost"].append(count_collapses(own.assign(well=count_wells(rows, len(own))), REPORTED))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _scale_objectives(chosen: pd.DataFrame) -> pd.DataFrame:
    parts = [
        estimate_scaling(own.reset_index(drop=True)).assign(objective=name)
        for name, own in chosen.groupby("objective", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _judge_objectives(lora: pd.DataFrame, curves: Curves) -> list[Verdict]:
    """Verdicts for the usual objective and for the chosen one where a sweep has several; SFT stands by each."""
    parts = split_objectives(lora)
    learners = {name: parts[name] for name in (USUAL, CHOSEN) if name in parts} or {"": lora}
    verdicts = []
    for name, own in learners.items():
        ids = own["cell_id"] if name == "" else pd.concat([own["cell_id"], parts.get("", own.head(0))["cell_id"]])
        # Of many keys E50 asks that all secrets are said at once, which is another question.
        is_one = lora["num_keys"].isna().to_numpy()
        cells = lora[is_one & lora["cell_id"].isin(ids).to_numpy()].reset_index(drop=True)
        if cells.empty:
            continue
        chosen = hold_out_settings(cells)
        known = when_observer_knew(_curves_of(curves, lora, chosen), chosen["signal_bits"].to_numpy())
        verdicts += [replace(verdict, objective=name) for verdict in judge_hypotheses(cells, chosen, known)]
    return [*verdicts, *judge_capacity(lora), *judge_interference(lora)]


def _use_labels(rows: pd.DataFrame, channels: pd.DataFrame) -> pd.DataFrame:
    """The rows, with channels under the names that readers use; a channel that nobody trained on keeps its own."""
    labels = dict(zip(channels["name"], channels["label"], strict=True))
    return rows.assign(channel=[labels.get(name, name) for name in rows["channel"]])


def _curves_of(curves: Curves, cells: pd.DataFrame, chosen: pd.DataFrame) -> Curves:
    """The rows of chosen cells, numbered as these are; both tables list cells in the same order."""
    index = pd.Series(np.arange(len(chosen)), index=chosen["cell_id"])
    return curves.of_cells(index.reindex(cells["cell_id"]).fillna(-1).to_numpy(dtype=np.int64))


def _estimate_maps(lora: pd.DataFrame) -> pd.DataFrame:
    by, parts = (*IDENTITY, *MAP_AXES), split_objectives(lora)
    shown = [parts[name] for name in ("", CHOSEN if CHOSEN in parts else USUAL) if name in parts]
    return estimate_groups(hold_out_settings(pd.concat(shown, ignore_index=True), by), by) if shown else lora.head(0)


def _worst_priors(lora: pd.DataFrame) -> pd.DataFrame:
    grouped = lora.groupby(["env_type", "N", "model"], sort=True)
    return grouped.agg(
        prior_kl_bits=("prior_kl_bits", "max"), prior_well_formed=("prior_well_formed", "min")
    ).reset_index()


def _varying(cells: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Fields that differ between cells of one channel, N and agent: the ones that a table of settings must show."""
    grouped = cells.groupby(["agent", "channel", "N"])[list(names)].nunique(dropna=False)
    return [name for name in names if (grouped[name] > 1).any()]


def _trace_provenance(trained: pd.DataFrame, launches: list[Row]) -> Provenance:
    versions: dict[str, list[str]] = {}
    for text in trained["versions"].dropna().unique():
        for name, version in json.loads(text).items():
            versions.setdefault(name, []).append(str(version))
    fields = (*TUNED, "model", "env_type", "algorithm")
    shared = {
        name: _to_text(trained[name].iloc[0])
        for name in fields
        if trained[name].nunique(dropna=False) == 1 and pd.notna(trained[name].iloc[0])
    }
    return Provenance(
        versions={name: sorted(set(found)) for name, found in versions.items()},
        created=(str(trained["created"].min()), str(trained["created"].max())),
        busy_s=float(trained["seconds"].sum()),
        revisions=sorted(trained["revision"].dropna().unique().tolist()),
        seeds=list_ranges(trained["seed"].unique()),
        shared=shared,
        launches=launches,
    )


def _to_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def list_ranges(values: np.ndarray) -> str:
    """Integers as ranges.

    >>> list_ranges(np.array([3, 0, 1, 2, 7]))
    '0–3, 7'
    """
    ordered = np.unique(values)
    breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
    runs = np.split(ordered, breaks)
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs if len(run))
