"""The tables, declared once: what a column is called, its type, and what it means."""

from typing import Any, get_args

import pyarrow as pa

from memrl.config import NETWORK_ROLES, TrainConfig, fields_of
from memrl.fields import find_doc
from memrl.tables.places import AGENTS, CURVES, EPISODES_TO_MEMORIZE

Row = dict[str, Any]
"""A row of a table, or of a data frame made of one, by column."""

REPEATED = b"repeated"
"""In a column's metadata: text of few values, which files hold as a dictionary (pandas reads a categorical)."""

TIME = pa.timestamp("us", tz="UTC")

_ARROW_TYPES = {int: pa.int64(), float: pa.float64()}


def _arrow_type(name: str) -> pa.DataType:
    """The type of the column of a field: of numbers their own, of all else text."""
    annotation = TrainConfig.__annotations__[name]
    return next(
        (_ARROW_TYPES[kind] for kind in (annotation, *get_args(annotation)) if kind in _ARROW_TYPES), pa.string()
    )


def _column(name: str, type_: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, type_, metadata={"doc": doc})


def _text(name: str, doc: str) -> pa.Field:
    """A column of text of few values."""
    return pa.field(name, pa.string(), metadata={"doc": doc, REPEATED: b"true"})


def _field_column(name: str) -> pa.Field:
    """The column of a field of TrainConfig, which is null where the cell has no use for it."""
    type_, doc = _arrow_type(name), find_doc(TrainConfig, name)
    return _text(name, doc) if type_ == pa.string() else _column(name, type_, doc)


CURVES_SCHEMA = pa.schema(
    [
        _text("cell_id", "the cell"),
        _column("update", pa.int32(), "updates before this row; 0 is the untrained policy"),
        _column("episodes", pa.int64(), "episodes (sft: examples) before this row"),
        _column("observed_bits", pa.float32(), "bits an ideal Bayes observer of the feedback knows; NaN if unobserved"),
        _column("absorbed_bits", pa.float32(), "signal_bits + log2 P(secret), exact; with keys the sum over them"),
        _column("mean_reward", pa.float32(), "mean return of this update's episodes; NaN for sft and in the last row"),
        _column("well_formed", pa.float32(), "share of this update's episodes that answer an integer in range"),
        _column("entropy_bits", pa.float32(), "mean of -log2 P(answer) over this update's episodes"),
        _column(
            "well",
            pa.float32(),
            "share of env_steps with P(right symbol) < 0.01 and no advantage in the group; NaN for sft, distill and in "
            "the last row",
        ),
        _column("gradient_norm", pa.float32(), "l2 norm of the adapter's gradient"),
        _column("logprob_gap", pa.float32(), "mean |learner - rollout| logprob of a sampled token, nats; 0 in_process"),
    ]
)
"""One row per cell and update (with keys: per measurement): the state before it, and the update's own episodes."""

EPISODES_TO_MEMORIZE_SCHEMA = pa.schema(
    [
        _column("cell_id", pa.string(), "hash of the fields that change the result"),
        _text("agent", "who was trained: lora, a policy that memrl trains, or whatever another trainer is called"),
        _text("channel", "a short name of what an episode tells"),
        *(_field_column(name) for name in TrainConfig.__annotations__ if name != "secret"),
        _column("secret", pa.int64(), "the hidden integer, or a sequence's number; null beyond 64 bits, and of keys"),
        _column("signal_bits", pa.float64(), "H(S): log2 of the number of secrets, times the keys"),
        _column("capacity_nominal_bits", pa.float64(), "bits per episode by the usual count; inf if continuous"),
        _column("capacity_uniform_bits", pa.float64(), "I(S; feedback) of one episode at a uniform guess"),
        _column("capacity_best_bits", pa.float64(), "I(S; feedback) of one episode at the best single guess"),
        _column("capacity_is_bound", pa.bool_(), "whether both are upper bounds: secrets too many to list"),
        _column("observed_is_bound", pa.bool_(), "whether observed_bits are upper bounds, for the same reason"),
        _column("identifiable", pa.bool_(), "whether maximizing the reward means saying the secret, for every secret"),
        _column("prior_kl_bits", pa.float64(), "KL(uniform || policy) before the first update"),
        _column("prior_well_formed", pa.float64(), "mass on answers in range before the first update"),
        _column("interference", pa.float64(), "mean cosine of the gradients of its prompt's places in the base model"),
        _column(
            "adapter_parameters", pa.int64(), "numbers that were trained: A and B of every layer at their true rank"
        ),
        _text("base_hash", "stands for the base model's weights and architecture"),
        _text("tokenizer_hash", "stands for its tokenizer and chat template"),
        _text("base_commit", "the hub's commit of it; null where it is not the hub's"),
        _text("prompt_hash", "stands for the prompt's token ids"),
        _column("answer_tokens", pa.int64(), "tokens of the longest answer, stop token included"),
        _column("e50", pa.int64(), "episodes before P(secret) first reached 0.5; null if it never did"),
        _column("e50_censored", pa.bool_(), "the run ended before P(secret) reached 0.5"),
        _column("e90", pa.int64(), "episodes before P(secret) first reached 0.9; null if it never did"),
        _column("e90_censored", pa.bool_(), "the run ended before P(secret) reached 0.9"),
        _column("half_bits", pa.int64(), "episodes before absorbed_bits first reached half of signal_bits, or null"),
        _column("half_bits_censored", pa.bool_(), "the run ended before it absorbed half of signal_bits"),
        _column("slope_bits", pa.float64(), "bits absorbed per episode between 10 % and 50 % of signal_bits, or null"),
        _column("episodes", pa.int64(), "episodes used in all"),
        _column("updates", pa.int64(), "updates made"),
        _column("absorbed_bits", pa.float64(), "at the end"),
        _column("observed_bits", pa.float64(), "at the end"),
        _text("status", "memorized, budget_spent, stopped (its learning rate could no longer be chosen) or failed"),
        _column("error", pa.string(), "what failed; null otherwise"),
        _column("seconds", pa.float64(), "the cell's share of its pack's wall time"),
        _column("tokens", pa.int64(), "tokens of all episodes, as a sampler without sharing would count them"),
        _column("created", TIME, "when the row was written"),
        _text("versions", "JSON: memrl, python, torch, transformers, ray, and what else ran"),
        _text("processor", "name of the GPU that it trained on, or of the processor"),
        _text("revision", "git revision of the code; null outside a checkout"),
    ]
)
"""One row per cell that was trained to its end, or failed."""

_OF_NETWORKS = {
    *(set(fields_of(*NETWORK_ROLES)) - {"learning_rate"}),
    *(
        "prior_kl_bits",
        "prior_well_formed",
        "interference",
        "adapter_parameters",
        "base_hash",
        "tokenizer_hash",
        "base_commit",
        "prompt_hash",
    ),
    *("answer_tokens", "tokens", "error", "processor"),
}

AGENTS_SCHEMA = pa.schema(
    [
        _column("cell_id", pa.string(), "hash of who played, and of the fields that it has a use for"),
        _text("agent", "who played, such as greedy or tabular_pg (memrl.theory.agents)"),
        *(field for field in EPISODES_TO_MEMORIZE_SCHEMA if field.name not in {*_OF_NETWORKS, "cell_id", "agent"}),
    ]
)
"""One row per agent of memrl.theory, channel and secret (tabular_pg: and setting)."""

SCHEMAS = {CURVES: CURVES_SCHEMA, EPISODES_TO_MEMORIZE: EPISODES_TO_MEMORIZE_SCHEMA, AGENTS: AGENTS_SCHEMA}
