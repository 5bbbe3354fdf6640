"""Two sweeps side by side: the same conditions, and how far they differ."""

import pandas as pd

from memrl.analysis.cells import CELL_COLUMNS, IDENTITY, TUNED, measured_cells
from memrl.analysis.estimate import estimate_groups, get_estimates, put_estimates
from memrl.analysis.resample import divide_estimates
from memrl.analysis.selection import hold_out_settings
from memrl.analysis.sentences import count_noun
from memrl.analysis.style import describe_channels, sort_for_readers
from memrl.tables.schema import EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

_ESTIMATES = ("e50", "e90", "bits_per_episode")
_NUMBERS = (
    "num_cells",
    "capacity_best_bits",
    *(f"{name}{end}" for name in _ESTIMATES for end in ("", "_lower", "_upper")),
)


def read_trained(store: TableStore) -> pd.DataFrame:
    """The measured cells of trained policies."""
    table = store.read(EPISODES_TO_MEMORIZE, list(CELL_COLUMNS)).to_pandas()
    return measured_cells(table[(table["agent"] == "lora").to_numpy()])


def compare_conditions(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """E50 and bits per episode of every condition that both sweeps measured, each at the settings that it chose.

    Where the sweeps have one model each, and not the same, a condition is one of channel and N.

    Args:
        first: measured cells of trained policies.
        second: the same, of the other sweep.

    Returns:
        One row per condition (the columns IDENTITY, channels as readers call them), in reading order: num_cells, e50,
        e90 and bits_per_episode with _lower and _upper, the same of the second sweep with _other after the name;
        rate_ratio, bits per episode of the second over those of the first; overlap: whether the intervals of E50 share
        a point.
    """
    if first.empty or second.empty:
        return pd.DataFrame()
    found = [estimate_groups(hold_out_settings(cells))[[*IDENTITY, *_NUMBERS]] for cells in (first, second)]
    beside = ["model"] if differ_in_model(first, second) else []
    found[1] = found[1].rename(columns={name: name_of_other(name) for name in [*_NUMBERS, *beside]})
    both = found[0].merge(found[1], on=[name for name in IDENTITY if name not in beside])
    ratio = divide_estimates(get_estimates(both, "e90"), get_estimates(both, "e90_other"))
    meets = (both["e50_lower"] <= both["e50_other_upper"]) & (both["e50_other_lower"] <= both["e50_upper"])
    channels = describe_channels(pd.concat([first, second]))
    labels = dict(zip(channels["name"], channels["label"], strict=True))
    both = put_estimates(both, "rate_ratio", ratio).assign(
        overlap=meets.to_numpy(), channel=both["channel"].map(labels)
    )
    return sort_for_readers(both, channels["label"])


def differ_in_model(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether two sweeps have one model each, and not the same."""
    models = [set(cells["model"]) for cells in (first, second)]
    return all(len(own) == 1 for own in models) and models[0] != models[1]


def name_of_other(name: str) -> str:
    """The column of the second sweep that is the first one's `name`."""
    stem, _, end = name.rpartition("_")
    return f"{stem}_other_{end}" if end in ("lower", "upper") else f"{name}_other"


def list_differences(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    """Fields whose values differ between two sweeps, with the values of each."""
    found = []
    for name in TUNED:
        one, other = (sorted(cells[name].dropna().unique()) for cells in (first, second))
        if one != other:
            found.append(f"{name}: {_list_values(one)} / {_list_values(other)}")
    return found


def _list_values(values: list[object]) -> str:
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(texts) or "none"


def describe_comparison(both: pd.DataFrame, names: tuple[str, str]) -> str:
    """In how many conditions the second sweep absorbed more, fewer or as many bits per episode as the first."""
    faster = int((both["rate_ratio_lower"] > 1).sum())
    slower = int((both["rate_ratio_upper"] < 1).sum())
    known = int(both["rate_ratio"].notna().sum())
    sentence = (
        f"{names[1]} absorbed more bits per episode than {names[0]} in {faster} of "
        f"{count_noun(known, 'condition')} (channel and N), fewer in {slower}; in {known - faster - slower} the 95 % "
        "interval of the ratio holds 1."
    )
    left = len(both) - known
    return sentence + (f" In {left} more, neither got half of its runs there." if left else "")
