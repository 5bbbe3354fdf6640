"""docs/columns.md: every column of every table with type, unit, meaning and an example, made from the schemas.

`uv run python docs/columns.py > docs/columns.md` writes it; a test holds it.
"""

import pyarrow as pa

from memrl.config import TrainConfig
from memrl.fields import find_default
from memrl.tables.schema import AGENTS, CURVES, EPISODES_TO_MEMORIZE, SCHEMAS

_UNITS = {
    **dict.fromkeys(("secret_length",), "symbols"),
    **dict.fromkeys(("malformed_reward", "baseline", "temperature", "mean_reward"), "reward"),
    **dict.fromkeys(("entropy_bonus", "kl_penalty"), "reward per nat"),
    **dict.fromkeys(("capacity_nominal_bits", "capacity_uniform_bits", "capacity_best_bits"), "bits per episode"),
    **dict.fromkeys(("group_size", "batch_size", "max_episodes", "episodes", "e50", "e90", "half_bits"), "episodes"),
    **dict.fromkeys(("update", "updates", "updates_per_batch", "measure_every"), "updates"),
    **dict.fromkeys(("stop_probability", "prior_well_formed"), "probability"),
    **dict.fromkeys(("tokens", "answer_tokens"), "tokens"),
    **dict.fromkeys(("well_formed", "well"), "share"),
    "N": "values",
    "adapter_parameters": "parameters",
    "num_keys": "secrets",
    "reward_bins": "bins",
    "n_steps": "batches",
    "slope_bits": "bits per episode",
    "logprob_gap": "nats",
    "interference": "cosine",
    "seconds": "s",
    "created": "UTC",
}
"""Of columns that have one; of those whose name ends in `_bits` and that are not here, bits."""

_EXAMPLES = {
    "cell_id": "0c1f5a90b7e4d326",
    "agent": "lora",
    "channel": "binned_distance-8-log",
    "secret": "37",
    "secret_length": "64",
    "num_keys": "16",
    "reward_code": "9f3a61c02b7de815",
    "reward_bins": "8",
    "credit": "per_step",
    "batch_size": "32",
    "max_episodes": "4000",
    "measure_every": "4",
    "model_files": "4be1c09a77d2f360",
    "prompt": "Say a number below {N}:",
    "bit_separator": ",",
    "signal_bits": "6.0",
    "capacity_nominal_bits": "1.0",
    "capacity_uniform_bits": "0.116",
    "capacity_best_bits": "0.116",
    "capacity_is_bound": "False",
    "observed_is_bound": "False",
    "identifiable": "True",
    "prior_kl_bits": "0.00011",
    "prior_well_formed": "0.9999",
    "interference": "0.12",
    "adapter_parameters": "14592",
    "base_hash": "8f14e45fceea167a",
    "tokenizer_hash": "c9f0f895fb98ab91",
    "base_commit": "93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
    "prompt_hash": "45c48cce2e2d7fbd",
    "answer_tokens": "3",
    "e50": "160",
    "e50_censored": "False",
    "e90": "192",
    "e90_censored": "False",
    "half_bits": "128",
    "half_bits_censored": "False",
    "slope_bits": "0.03",
    "update": "12",
    "episodes": "384",
    "updates": "24",
    "absorbed_bits": "5.85",
    "observed_bits": "6.0",
    "mean_reward": "0.25",
    "well_formed": "0.997",
    "well": "0.31",
    "entropy_bits": "5.98",
    "gradient_norm": "0.041",
    "logprob_gap": "0.0",
    "status": "memorized",
    "error": "RuntimeError: the loss is not finite",
    "seconds": "0.41",
    "tokens": "1152",
    "created": "2026-11-22 22:44:11+00:00",
    "versions": '{"memrl": "0.1.0", "torch": "2.13.0"}',
    "processor": "NVIDIA H100 80GB HBM3",
    "revision": "dbd64c99a033",
}
"""Of all columns but the fields of TrainConfig whose default is one."""

_HEAD = """\
# Columns

Made from the schemas by `uv run python docs/columns.py > docs/columns.md`; a test holds it. Each table is a
folder of parquet files; `memrl.load("bitrate")` gives all three as data frames, and `pd.read_parquet` reads each. What
the words mean: [glossary](glossary.md).

Text of few values is a dictionary in the files, which pandas reads as a categorical. Null means that a cell has no use
for a field, or that something was not measured. **`e50`, `e90` and `half_bits` are null where a run ended before it got
there** (their `_censored` is then true, and all that is known is that it would have taken more than `episodes`): a mean
or median of these columns leaves out just the slow runs. `memrl.estimate` takes them into account.
"""

_TITLES = {
    EPISODES_TO_MEMORIZE: "One row per cell that was trained to its end, or failed. Its key is (`cell_id`, `agent`).",
    CURVES: "One row per cell and update: the state before the update, and the update's own episodes. Its key is "
    "(`cell_id`, `update`).",
    AGENTS: "One row per baseline agent, channel and secret (tabular_pg: and setting), none of which has a network. "
    "Its key is (`cell_id`, `agent`).",
}


def describe_columns() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for table, told in _TITLES.items():
        rows = [_describe(field, table) for field in SCHEMAS[table]]
        parts.append("\n".join([f"## {table}\n\n{told}\n", "| column | type | unit | what it means | example |"]))
        parts[-1] += "\n".join(["\n|---|---|---|---|---|", *rows, ""])
    return "\n".join(parts)


def _describe(field: pa.Field, table: str) -> str:
    name = field.name
    unit = _UNITS.get(name, "bits" if name.endswith("_bits") else "")
    example = "greedy" if (table, name) == (AGENTS, "agent") else example_of(name)
    meaning = field.metadata[b"doc"].decode().replace("|", "\\|")
    return f"| `{name}` | {_name_type(field.type)} | {unit} | {meaning} | `{example}` |"


def example_of(name: str) -> str:
    """A value of a column, as text.

    Raises:
        KeyError: the column has none.
    """
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    default = find_default(TrainConfig, name)
    if default is None:
        raise KeyError(f"the column {name} needs an example in docs/columns.py")
    return str(default)


def _name_type(type_: pa.DataType) -> str:
    names = {"string": "text", "double": "float64", "float": "float32", "timestamp[us, tz=UTC]": "timestamp"}
    return names.get(str(type_), str(type_))


if __name__ == "__main__":
    print(describe_columns(), end="")
