"""The description of a cell: what it refuses, and which cells are the same."""

import re
from typing import Any, get_args

import chz
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memrl.cell_rules import NEEDS_NO_PEER
from memrl.config import (
    NETWORK_ROLES,
    REWARD_TYPES,
    RL_ROLES,
    ROLES,
    SHARED_ROLES,
    Advantage,
    EnvType,
    TrainConfig,
    describe_equal_losses,
    fields_of,
    hash_fields,
)
from memrl.suggest import did_you_mean

INTEGERS = ["N", "secret", "seed", "reward_bins", "group_size", "batch_size", "lora_rank", "n_steps", "max_episodes"]
BINNED = {"reward_type": "binned_distance", "reward_bins": 8}
PPO = {"loss": "ppo"}
CONSTANT = {"advantage": "constant_baseline"}
REJECTION = {"advantage": "rejection"}
WEIGHTS = {"advantage": "exponential_weights"}
NOT_ZERO_OR_ONE = (
    "advantage must be exponential_weights or group_centered where what an env_step answers for is not 0 or 1"
)
MULTI_STEP = {"env_type": "multi_step"}
SFT: dict[str, Any] = {"algorithm": "sft"}

REFUSED = [
    ({"N": "64"}, "N must be of type int, got '64'"),
    ({"N": 64.0}, "N must be of type int, got 64.0"),
    ({"secret": 1.5}, "secret must be of type int | unset, got 1.5"),
    ({"learning_rate": "fast"}, "learning_rate must be of type float, got 'fast'"),
    (
        {"env_type": "multistep"},
        "env_type must be one of single_step, multi_step, got 'multistep'; did you mean 'multi_step'?",
    ),
    ({"credit": "zzz"}, "credit must be one of per_step, return_to_go, episode, got 'zzz'"),
    ({"N": 1}, "N must be at least 2, got 1"),
    ({"N": -4}, "N must be at least 2, got -4"),
    ({"N": 8, "secret": 8}, "secret must lie in 0 .. 7, got 8"),
    ({"N": 8, "secret": -1}, "secret must lie in 0 .. 7, got -1"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"stop_probability": 1.0}, "stop_probability must lie strictly between 0 and 1, got 1.0"),
    ({"stop_probability": 0.0}, "stop_probability must lie strictly between 0 and 1, got 0.0"),
    ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ({"max_episodes": 0}, "max_episodes must be at least 1, got 0"),
    (
        {"reward_type": "binery"},
        "reward_type must name a channel or package.module:function, got 'binery'; did you mean 'binary'?",
    ),
    (
        {"reward_type": "zzz"},
        "reward_type must name a channel or package.module:function, got 'zzz'; choose from "
        "binary, binned_distance, distance, per_bit, bit_count, per_element, element_count",
    ),
    (
        {"reward_type": "binned_distance"},
        "reward_bins must be set for reward_type=binned_distance, got None",
    ),
    ({**BINNED, "reward_bins": 1}, "reward_bins must lie in 2 .. N=64, got 1"),
    ({**BINNED, "N": 4, "reward_bins": 5}, "reward_bins must lie in 2 .. N=4, got 5"),
    (
        {"reward_type": "per_bit"},
        "reward_type must not be per_bit on env_type=single_step (use multi_step), got per_bit",
    ),
    ({"malformed_reward": float("nan")}, "malformed_reward must be finite, got nan"),
    ({"baseline": float("inf")}, "baseline must be finite, got inf"),
    ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
    ({"lora_rank": -8}, "lora_rank must be at least 1, got -8"),
    ({"lora_alpha": 0.0}, "lora_alpha must be positive, got 0.0"),
    ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
    ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
    ({"adam_beta1": 1.0}, "adam_beta1 must lie in [0, 1), got 1.0"),
    ({"adam_beta2": -0.1}, "adam_beta2 must lie in [0, 1), got -0.1"),
    ({"adam_epsilon": 0.0}, "adam_epsilon must be positive, got 0.0"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"clip_range": 0.0}, "clip_range must be positive, got 0.0"),
    ({"group_size": 0}, "group_size must be at least 1, got 0"),
    (
        {"group_size": 1},
        "group_size must be at least 2 for advantage=group_centered, whose baseline is the group's"
        " (or use constant_baseline), got 1",
    ),
    (
        {"group_size": 1, "advantage": "leave_one_out"},
        "group_size must be at least 2 for advantage=leave_one_out, whose baseline is the group's"
        " (or use constant_baseline), got 1",
    ),
    (
        {"group_size": 1, "advantage": "maxrl"},
        "group_size must be at least 2 for advantage=maxrl, whose baseline is the group's"
        " (or use constant_baseline), got 1",
    ),
    ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ({"entropy_bonus": -0.1}, "entropy_bonus must be at least 0, got -0.1"),
    ({"kl_penalty": -0.1}, "kl_penalty must be at least 0, got -0.1"),
    *(
        ({"advantage": kind, **fields}, f"{NOT_ZERO_OR_ONE}, got {kind}")
        for kind in ("rejection", "maxrl")
        for fields in (
            {"reward_type": "distance"},
            BINNED,
            {"reward_type": "bit_count", **MULTI_STEP},
            {"reward_type": "per_bit", "credit": "episode", **MULTI_STEP},
            {"reward_type": "per_bit", "credit": "return_to_go", **MULTI_STEP},
            {"reward_type": "package.module:function"},
        )
    ),
    ({**REJECTION, "malformed_reward": -1.0}, "malformed_reward must be 0 for advantage=rejection, got -1.0"),
    ({"group_size": 8, "batch_size": 12}, "batch_size must be a multiple of group_size=8, got 12"),
    ({"N": True}, "N must be of type int, got True"),
    ({"group_size": True}, "group_size must be of type int, got True"),
    ({"seed": 2**63}, "seed must lie below 2^63, got an integer of 64 bits"),
    ({"max_episodes": 10**30}, "max_episodes must lie below 2^63, got an integer of 100 bits"),
    ({"N": 10**9}, "N must be at most 131,072, got 1000000000, which has 1e+18 pairs of guess and secret"),
    ({"group_size": 10**9}, "group_size must be at most 10,000,000, got 1000000000, which take 200 GB"),
    (
        {"algorithm": "sft", "batch_size": 2 * 10**7},
        "batch_size must be at most 10,000,000, got 20000000, which take 4 GB",
    ),
    (
        {"lora_rank": 10**9},
        "lora_rank must be at most 4,096 (a rank above a layer's width adds nothing but memory), got 1000000000",
    ),
    ({"n_steps": 2**31}, "n_steps must be at most 2,147,483,647, got 2147483648"),
    ({"max_episodes": 31}, "max_episodes must be at least 32, the episodes of one update, got 31"),
]


@given(st.sampled_from(INTEGERS), st.integers(-(10**400), 10**400))
def test_every_integer_is_either_refused_in_one_line_or_fits_the_tables(name, value):
    try:
        cell = TrainConfig(**{name: value})
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        row = {field: cell.identity()[field] for field in INTEGERS} | {"episodes": cell.episode_budget}
        pa.Table.from_pylist([row], schema=pa.schema([(field, pa.int64()) for field in row]))
        pa.array([cell.n_steps], pa.int32())
    assert len(message) < 200


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lr", "learning_rate"), ("n", "N"), ("rank", "lora_rank"), ("bins", "reward_bins"), ("LOSS", "loss")],
)
def test_what_other_tools_call_a_field_is_understood(word, meant):
    assert did_you_mean(word, TrainConfig.__annotations__) == f"; did you mean {meant!r}?"


def test_a_word_that_stands_for_nothing_is_answered_briefly():
    assert did_you_mean("zzz", TrainConfig.__annotations__) == "; --help lists them all"


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refuses_a_field_in_one_line(fields, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"N": 2},
        {"N": 8, "secret": 7},
        {"N": 8, "secret": 0},
        {**BINNED, "N": 8},
        {**BINNED, "reward_bins": 2},
        {"reward_type": "per_bit", **MULTI_STEP},
        {"reward_type": "package.module:function"},
        {"group_size": 1, **CONSTANT},
        {"group_size": 1, **REJECTION},
        {**REJECTION, **MULTI_STEP},
        {**REJECTION, "reward_type": "per_bit", **MULTI_STEP},
        {**SFT, **REJECTION, "reward_type": "distance"},
        {"group_size": 8, "batch_size": 24},
        {**SFT, "batch_size": 12, "group_size": 8},
        {**SFT, "group_size": 1},
        {**SFT, "reward_type": "per_bit"},
        {"malformed_reward": -1.0},
    ],
)
def test_takes_the_borders(fields):
    config = TrainConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize("address", ["module.function", "module:", ":function", "1module:function", "a b:c", "a:b:c"])
def test_refuses_what_is_no_address_of_a_function(address):
    with pytest.raises(ValueError, match="reward_type must name a channel"):
        TrainConfig(reward_type=address)


def test_is_frozen():
    config = TrainConfig()
    with pytest.raises(chz.data_model.FrozenInstanceError):
        config.N = 8  # pyright: ignore[reportAttributeAccessIssue]


IRRELEVANT = [
    ({}, {"secret": None}),
    (MULTI_STEP, {"secret_length": None}),
    ({}, {"reward_bins": 4}),
    ({}, {"binning": "linear"}),
    ({}, {"baseline": 0.5}),
    ({}, {"clip_range": 0.1}),
    ({}, {"temperature": 0.5}),
    (SFT, {"entropy_bonus": 0.1}),
    (SFT, {"kl_penalty": 0.1}),
    ({}, {"credit": "per_step"}),
    ({}, {"bit_separator": " "}),
    ({}, {"batch_size": 32}),
    ({"group_size": 4}, {"batch_size": 4}),
    ({"reward_type": "per_bit", **MULTI_STEP}, {"credit": "per_step"}),
    (MULTI_STEP, {"credit": "episode"}),
    (SFT, {"batch_size": 1}),
    *((SFT, change) for change in ({"reward_type": "distance"}, BINNED, {"malformed_reward": -1.0}, {"group_size": 4})),
    *((SFT, change) for change in ({"advantage": "leave_one_out"}, {"loss": "reinforce"}, {"credit": "episode"})),
    (SFT, {"rollout": "vllm"}),
    (SFT, {"bit_separator": " "}),
]


@pytest.mark.parametrize(("base", "change"), IRRELEVANT)
def test_a_field_that_is_not_used_does_not_split_a_cell(base, change):
    assert TrainConfig(**base).cell_id == TrainConfig(**{**base, **change}).cell_id


RELEVANT = [
    ({}, {"algorithm": "sft"}),
    ({}, MULTI_STEP),
    ({}, {"N": 65}),
    (MULTI_STEP, {"secret_length": 64}),
    ({}, {"num_keys": 1}),
    ({"num_keys": 8}, {"measure_every": 2}),
    ({"num_keys": 8, "algorithm": "distill"}, {"group_size": 4, "batch_size": 32}),
    ({}, {"secret": 0}),
    ({}, {"seed": 1}),
    ({}, {"reward_type": "distance"}),
    ({"reward_type": "nowhere:pay"}, {"reward_code": "0123abcd"}),
    ({}, {"malformed_reward": -1.0}),
    ({}, {"advantage": "leave_one_out"}),
    ({}, {"loss": "reinforce"}),
    ({}, {"group_size": 16}),
    ({}, {"batch_size": 64}),
    ({}, {"learning_rate": 1e-3}),
    ({}, {"lora_rank": 4}),
    ({}, {"lora_alpha": 16.0}),
    ({}, {"adam_beta1": 0.8}),
    ({}, {"adam_beta2": 0.99}),
    ({}, {"adam_epsilon": 1e-6}),
    ({}, {"n_steps": 10}),
    ({}, {"max_episodes": 100}),
    ({}, {"stop_probability": 0.5}),
    ({}, {"model": "Qwen/Qwen3-8B"}),
    ({"model": "/no/such/folder"}, {"model_files": "0123abcd-0123abcd"}),
    ({}, {"prompt_format": "chat"}),
    ({}, {"prompt": "0 to {last}:"}),
    ({}, {"dtype": "float64"}),
    ({}, {"rollout": "vllm"}),
    ({}, {"updates_per_batch": 2}),
    ({"algorithm": "distill"}, {"explore": "thompson"}),
    (BINNED, {"reward_bins": 4}),
    (BINNED, {"binning": "linear"}),
    (CONSTANT, {"baseline": 0.5}),
    (PPO, {"clip_range": 0.1}),
    (WEIGHTS, {"temperature": 0.5}),
    ({"advantage": "delightful"}, {"temperature": 0.5}),
    ({}, {"entropy_bonus": 0.1}),
    ({}, {"kl_penalty": 0.1}),
    (MULTI_STEP, {"credit": "per_step"}),
    (MULTI_STEP, {"credit": "return_to_go"}),
    (MULTI_STEP, {"bit_separator": " "}),
    (SFT, {"batch_size": 2}),
    (SFT, {"learning_rate": 1e-3}),
    ({**SFT, **MULTI_STEP}, {"bit_separator": " "}),
]


@pytest.mark.parametrize(("base", "change"), RELEVANT)
def test_a_field_that_is_used_splits_cells(base, change):
    assert TrainConfig(**base).cell_id != TrainConfig(**{**base, **change}).cell_id


def test_every_field_is_known_to_split_cells_or_not():
    """A new field must be placed in RELEVANT, or its cells may be taken for one another."""
    splitting = {name for _, change in RELEVANT for name in change}
    assert splitting == set(chz.chz_fields(TrainConfig))


def test_every_field_says_what_it_is_for():
    """Packs, agents, tables and the analysis treat a field by its role: one without a role would pool unlike cells."""
    assert sorted(fields_of(*ROLES)) == sorted(chz.chz_fields(TrainConfig))
    assert {*RL_ROLES, *NETWORK_ROLES, *SHARED_ROLES} <= set(ROLES)
    assert all(fields_of(role) for role in ROLES)


def test_losses_that_are_one_gradient_are_said_to_be():
    def warned(*cells):
        return [line.partition(":")[0] for line in describe_equal_losses([TrainConfig(**cell) for cell in cells])]

    assert warned({}, SFT, {**PPO, "rollout": "vllm"}, {**PPO, **SFT}) == []
    assert warned({}, PPO, {"loss": "reinforce"}) == ["loss=ppo,reinforce"]


DEFAULTS: dict[str, Any] = {
    **{"algorithm": "rl", "env_type": "single_step", "N": 64, "seed": 0, "reward_type": "binary", "binning": "log"},
    **{"malformed_reward": 0.0, "advantage": "group_centered", "baseline": 0.0, "temperature": 1.0, "group_size": 32},
    **{"loss": "importance_sampling", "clip_range": 0.2, "entropy_bonus": 0.0, "kl_penalty": 0.0, "explore": "policy"},
    **{"updates_per_batch": 1, "learning_rate": 3e-3, "lora_rank": 8, "lora_alpha": 32.0, "adam_beta1": 0.9},
    **{"adam_beta2": 0.999, "adam_epsilon": 1e-8, "n_steps": 1000, "stop_probability": 0.9, "model": "embedded"},
    **{"prompt_format": "plain", "prompt": "", "bit_separator": "", "dtype": "float32", "rollout": "in_process"},
}


def test_cell_id_is_a_stable_name():
    """A change here makes every stored result be measured anew: raise RESULT_VERSION knowingly instead."""
    assert TrainConfig().cell_id == TrainConfig(N=64, seed=0).cell_id
    assert len({TrainConfig(N=n, seed=s).cell_id for n in range(2, 30) for s in range(30)}) == 28 * 30
    assert set(TrainConfig().cell_id) <= set("0123456789abcdef")
    assert len(TrainConfig().cell_id) == 16
    assert TrainConfig(N=16, **SFT, lora_rank=2).cell_id == "580ca1c132a0d4b5"


def test_a_default_is_no_part_of_a_cell_id_and_so_may_not_change_by_itself():
    """Another default would give cells that differ one name: raise RESULT_VERSION with it."""
    defaults = {name: getattr(TrainConfig(), name) for name in chz.chz_fields(TrainConfig)}
    assert defaults | DEFAULTS == defaults
    assert hash_fields({"seed": 3}) == hash_fields({"N": 64, "seed": 3, "secret": None, "lora_alpha": 32.0})
    assert hash_fields({"seed": 3}) != hash_fields({"N": 65, "seed": 3})


def test_integers_and_floats_of_one_value_are_one_cell():
    assert TrainConfig(lora_alpha=32).cell_id == TrainConfig(lora_alpha=32.0).cell_id


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "binary"),
        ({"reward_type": "distance"}, "distance"),
        (BINNED, "binned_distance-8-log"),
        ({**BINNED, "binning": "equal_mass"}, "binned_distance-8-equal_mass"),
        ({**BINNED, **MULTI_STEP}, "multi_step/binned_distance-8-log"),
        (MULTI_STEP, "multi_step/binary"),
        ({"reward_type": "bit_count", **MULTI_STEP}, "multi_step/bit_count"),
        ({"reward_type": "per_bit", **MULTI_STEP}, "per_bit"),
        ({"reward_type": "per_bit", "credit": "episode", **MULTI_STEP}, "per_bit-episode"),
        (SFT, "sft"),
        ({**SFT, **MULTI_STEP}, "multi_step/sft"),
        ({**SFT, **MULTI_STEP, "secret_length": 3}, "sequence-3/sft"),
        (
            {"reward_type": "per_element", "credit": "episode", **MULTI_STEP, "secret_length": 3},
            "sequence-3/per_element-episode",
        ),
    ],
)
def test_channel_name(fields, name):
    assert TrainConfig(**fields).channel_name == name


@pytest.mark.parametrize(
    ("fields", "per_update", "groups", "budget"),
    [
        ({"group_size": 8, "n_steps": 10}, 8, 1, 80),
        ({"group_size": 8, "batch_size": 24, "n_steps": 10}, 24, 3, 240),
        ({"group_size": 8, "n_steps": 10, "max_episodes": 50}, 8, 1, 50),
        ({"group_size": 8, "n_steps": 10, "max_episodes": 500}, 8, 1, 80),
        ({**SFT, "n_steps": 10}, 1, 1, 10),
        ({**SFT, "n_steps": 10, "batch_size": 32}, 32, 1, 320),
    ],
)
def test_episode_counts(fields, per_update, groups, budget):
    config = TrainConfig(**fields)
    assert (config.episodes_per_update, config.num_groups, config.episode_budget) == (per_update, groups, budget)


@given(
    N=st.integers(2, 10_000),
    bins=st.integers(-3, 10_001),
    group=st.integers(-2, 9),
    batch=st.none() | st.integers(-2, 40),
    reward_type=st.sampled_from(REWARD_TYPES),
    env_type=st.sampled_from(get_args(EnvType)),
    advantage=st.sampled_from(get_args(Advantage)),
    length=st.none() | st.integers(-1, 5) | st.just(1025),
)
def test_refuses_or_takes_by_the_rules(N, bins, group, batch, reward_type, env_type, advantage, length):
    sound = group >= 1 and (group > 1 or advantage in NEEDS_NO_PEER)
    sound &= advantage not in ("rejection", "maxrl") or reward_type in ("binary", "per_bit", "per_element")
    sound &= batch is None or (batch >= 1 and group >= 1 and batch % group == 0)
    sound &= reward_type != "binned_distance" or 2 <= bins <= N
    sound &= reward_type not in ("per_bit", "per_element") or env_type == "multi_step"
    sound &= length is None or (1 <= length <= 5 and env_type == "multi_step")
    sound &= reward_type not in ("per_bit", "bit_count") or length is None
    sound &= reward_type not in ("per_element", "element_count") or length is not None
    fields = {"N": N, "reward_bins": bins, "group_size": group, "batch_size": batch}
    fields |= {"reward_type": reward_type, "env_type": env_type, "advantage": advantage}
    fields["secret_length"] = length
    if not sound:
        with pytest.raises(ValueError, match=r"^\w+ must .*$"):
            TrainConfig(**fields)
        return
    config = TrainConfig(**fields)
    assert config.num_groups * config.group_size == config.episodes_per_update


def test_did_you_mean():
    assert did_you_mean("grup_size", ["group_size", "seed"]) == "; did you mean 'group_size'?"
    assert did_you_mean("qqq", ["group_size", "seed"]) == "; choose from group_size, seed"


def test_numpy_is_no_part_of_an_identity():
    """Grids may be made by numpy: its integers must not get past the types, or equal cells would hash apart."""
    with pytest.raises(ValueError, match="N must be of type int, got "):
        TrainConfig(N=np.int64(64))  # pyright: ignore[reportArgumentType]


def test_a_model_folder_is_known_by_what_it_holds(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"some weights")
    monkeypatch.chdir(tmp_path)
    first = TrainConfig(model="model")
    assert TrainConfig(model=str(tmp_path / "model")).cell_id == TrainConfig(model="./model").cell_id == first.cell_id
    assert first.identity()["model"] == "model"
    weights.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"^model_files must be [0-9a-f-]{33}, what model holds now, got"):
        TrainConfig(model="model", model_files=first.model_files)
    assert TrainConfig(model="model").cell_id != first.cell_id
    assert chz.replace(first, model="embedded").cell_id == TrainConfig().cell_id


def test_hub_names_and_the_embedded_model_keep_their_cell_ids():
    assert TrainConfig().cell_id == "24ccb5d4e3b80fd9"
    assert [TrainConfig(model=model).model_files for model in ("embedded", "Qwen/Qwen3-8B", "smollm2-135m")] == [
        None
    ] * 3


def test_a_prompt_is_part_of_a_cell_and_an_unset_one_is_not():
    assert TrainConfig(prompt="Guess 0 to {last}: ").cell_id != TrainConfig().cell_id
    assert TrainConfig(prompt="").cell_id == TrainConfig().cell_id


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("{secret}:", "prompt must leave only {N} and {last} to be filled in, got {secret}"),
        ("{N.real}:", "prompt must leave only {N} and {last} to be filled in, got {N.real}"),
        ("{N!r}:", "prompt must leave only {N} and {last} to be filled in, got {N}"),
        ("{N:", "prompt must have its braces in pairs, got '{N:'"),
        ("x" * 20_001, "prompt must have at most 20,000 characters, got 20001"),
    ],
)
def test_a_prompt_that_can_not_be_filled_in_is_refused(prompt, rule):
    with pytest.raises(ValueError, match="^" + re.escape(rule)):
        TrainConfig(prompt=prompt)
