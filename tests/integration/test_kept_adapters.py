"""Adapters that a run keeps: another program loads them, and they know what was measured."""

import json
import math

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.base_model import encode_task, load_base_model

CELLS = [
    TrainConfig(N=16, algorithm="sft", learning_rate=1e-2, n_steps=6, lora_rank=2),
    TrainConfig(N=16, env_type="multi_step", reward_type="per_bit", group_size=4, n_steps=6, lora_rank=3, seed=1),
]


def test_each_cell_that_ends_leaves_what_peft_loads_and_its_row(tmp_path):
    folder = tmp_path / "deep" / "kept"
    pack = Pack(CELLS, adapters=str(folder))
    while not pack.finished:
        pack.update()
    rows, _ = pack.drain()
    assert sorted(path.name for path in folder.iterdir()) == sorted(cell.cell_id for cell in CELLS)
    tokenizer = load_base_model("embedded")[1]
    for row in rows:
        told = json.loads((folder / row["cell_id"] / "cell.json").read_text("utf-8"))
        assert told["absorbed_bits"] == row["absorbed_bits"]
        settings = peft.PeftConfig.from_pretrained(folder / row["cell_id"])
        base = AutoModelForCausalLM.from_pretrained(str(settings.base_model_name_or_path))
        policy = peft.PeftModel.from_pretrained(base, folder / row["cell_id"])
        task = encode_task(tokenizer, row["N"], row["env_type"])
        answer = task.automaton.tokens(task.answer_format.digits(row["secret"])).tolist()
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*task.prompt_ids, *answer]])).logits[0, -len(answer) - 1 : -1]
        scores = torch.log_softmax(logits, dim=-1)[range(len(answer)), answer].sum().item() / math.log(2)
        assert math.log2(row["N"]) + scores == pytest.approx(row["absorbed_bits"], abs=1e-4)


def test_an_adapter_of_an_earlier_run_is_replaced(tmp_path):
    cell = TrainConfig(N=16, n_steps=1, lora_rank=1)
    for _ in range(2):
        pack = Pack([cell], adapters=str(tmp_path))
        while not pack.finished:
            pack.update()
    assert [path.name for path in tmp_path.iterdir()] == [cell.cell_id]


def test_a_folder_that_can_not_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^save_adapters must be a folder that can be written, got"):
        Pack(CELLS[:1], adapters=str(tmp_path / "file" / "below"))


def test_rows_tell_what_base_model_they_ran_on():
    pack = Pack([TrainConfig(N=16, n_steps=1)])
    while not pack.finished:
        pack.update()
    ((row,), _) = pack.drain()
    assert len(row["base_hash"]) == len(row["tokenizer_hash"]) == len(row["prompt_hash"]) == 16
    assert row["base_commit"] is None
    assert row["answer_tokens"] == 3
    assert row["processor"]
