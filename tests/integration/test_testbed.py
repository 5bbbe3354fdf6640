"""A trainer of one's own on memrl's testbed: the same task, the same bits, the same tables."""

import html
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from simulated_sweep import SMALL_GRID, write_sweep

import memrl
from memrl.analysis.page import write_report
from memrl.analysis.summary import summarize_sweep
from memrl.config import TrainConfig
from memrl.policy.base_model import load_base_model
from memrl.policy.calibration import compute_answer_log2
from memrl.task.reward import build_channel


def start_policy(rank: int = 4) -> tuple[Any, Any]:
    torch.manual_seed(0)
    base, tokenizer = load_base_model("embedded")
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear")), tokenizer


def learn(policy, optimizer, ids, answer_at):
    """One step of supervised learning on the tokens after the prompt."""
    logits = policy(input_ids=ids).logits[0, answer_at - 1 : -1]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(logits, ids[0, answer_at:]).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "fields",
    [
        {"N": 16},
        {"N": 16, "reward_type": "distance"},
        {"N": 8, "reward_type": "per_bit", "env_type": "multi_step"},
        {"N": 4, "secret_length": 3, "env_type": "multi_step", "reward_type": "per_element"},
    ],
    ids=str,
)
def test_text_pays_what_the_channel_pays(fields):
    task = memrl.Task(secret=5, **fields)
    channel = build_channel(TrainConfig(**fields))
    guesses = np.arange(channel.N)
    texts = ["".join(channel.answer_format.spans(digits)) for digits in channel.answer_format.digits(guesses)]
    paid = channel.rewards(guesses, np.array(5)).sum(axis=-1)
    assert task.reward(texts) == pytest.approx(paid.tolist())
    assert texts[5] == task.answer
    assert task.reward([task.answer])[0] == max(task.reward(texts))
    assert task.reward(["", "x", task.answer[:-1] + "x"])[0] == 0


def test_what_is_cut_short_or_goes_on_is_malformed():
    task = memrl.Task(N=64, secret=42, malformed_reward=-1.0)
    assert task.reward(["42", "4", "421", "42 ", "042", ""]) == [1.0, 0.0, -1.0, -1.0, -1.0, -1.0]


def test_a_task_has_one_secret():
    with pytest.raises(ValueError, match="num_keys must be unset"):
        memrl.Task(N=64, num_keys=4)


def test_a_ledger_counts_hears_measures_and_writes_what_the_page_shows(tmp_path):
    task = memrl.Task(N=16, secret=11, learning_rate=1e-2, lora_rank=4)
    policy, tokenizer = start_policy()
    ledger = memrl.Ledger(task, policy, tokenizer, agent="mine")
    assert ledger.absorbed_bits == pytest.approx(0, abs=0.1)
    answers = [tokenizer(str(guess), add_special_tokens=False).input_ids for guess in range(16)]
    stop = ledger._encoded.stop_token_id
    assert stop is not None
    ids = torch.tensor([[*ledger.prompt_ids, *answers[11], stop]])
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    assert not ledger.note(0)
    # Guesses in order: each tells that the secret is not it, and the twelfth that it is.
    for update in itertools.count(1):
        guesses = range(4 * (update - 1) % 16, 4 * (update - 1) % 16 + 4)
        assert ledger.reward([[*answers[guess], stop] for guess in guesses]) == [float(g == 11) for g in guesses]
        left = 1 if update > 2 else 16 - 4 * update
        assert ledger.observed_bits == pytest.approx(4 - math.log2(left))
        learn(policy, optimizer, ids, len(ledger.prompt_ids))
        if ledger.note(update):
            break
    row = ledger.save(str(tmp_path))
    assert (row["status"], row["episodes"], row["updates"]) == ("memorized", 4 * update, update)
    assert row["absorbed_bits"] == pytest.approx(4, abs=0.16)
    assert row["e50"] <= row["e90"] == row["episodes"]

    cells, curves, _ = memrl.load(str(tmp_path))
    assert cells["agent"].tolist() == ["mine"]
    assert curves["update"].tolist() == list(range(update + 1))
    assert curves["mean_reward"].iloc[:3].tolist() == [0.0, 0.0, 0.25]
    pd.testing.assert_series_equal(curves["episodes"], 4 * curves["update"].astype("int64"), check_names=False)

    # Alone, its runs are the page's.
    summary = summarize_sweep(str(tmp_path))
    assert (summary.trainer, summary.num_finished) == ("mine", 1)
    page = write_report(str(tmp_path)).read_text("utf-8")
    assert "None of these runs is memrl's own: their policies were trained by “mine”" in html.unescape(page)

    # Beside a sweep of memrl's own, its page shows the run under its name.
    write_sweep(str(tmp_path), **(SMALL_GRID | {"Ns": (16,), "processes": ("binary",)}))
    estimates = summarize_sweep(str(tmp_path)).estimates
    assert estimates[estimates["agent"] == "mine"]["e50"].tolist() == [row["e50"]]


def test_the_bits_of_a_policy_are_those_of_every_measure_of_it():
    """Teacher forcing of one answer, and the prior over the whole tree of answers, after some learning."""
    task = memrl.Task(N=8, secret=3, reward_type="per_bit", env_type="multi_step")
    policy, tokenizer = start_policy()
    ledger = memrl.Ledger(task, policy, tokenizer)
    answer = ledger._encoded.automaton.tokens(task.digits).tolist()
    ids = torch.tensor([[*ledger.prompt_ids, *answer]])
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(5):
        learn(policy, optimizer, ids, len(ledger.prompt_ids))
    assert ledger.absorbed_bits > 0.2
    assert ledger.secret_log2 == pytest.approx(compute_answer_log2(policy.eval(), ledger._encoded)[3], abs=1e-4)


def test_a_model_that_does_not_guess_uniformly_and_memrl_s_own_name_are_refused():
    policy, tokenizer = start_policy()
    with pytest.raises(ValueError, match="agent must be a name of its own"):
        memrl.Ledger(memrl.Task(N=16), policy, tokenizer, agent="lora")
    with pytest.raises(ValueError, match="model must be calibrated"):
        memrl.Ledger(memrl.Task(N=16, prompt="00-00-0:"), policy, tokenizer)


@pytest.mark.slow
def test_trl_is_measured_by_the_same_ledger(tmp_path):
    pytest.importorskip("trl")
    script = Path(__file__).parents[2] / "docs" / "trl_grpo.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells, curves, _ = memrl.load(str(tmp_path))
    assert cells["agent"].tolist() == ["trl"]
    assert cells["absorbed_bits"].iloc[0] > 2
    assert curves["observed_bits"].is_monotonic_increasing
