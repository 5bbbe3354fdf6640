"""What a base model's record says of a prompt's interference."""

import json

from memrl.policy.base_model import encode_task, load_base_model, save_base_model
from memrl.policy.questions import QUESTION_FIELDS
from memrl.policy.warmup_record import read_interference


def test_the_prompt_that_was_asked_is_looked_up_and_an_older_record_is_read(tmp_path):
    base, tokenizer = load_base_model("embedded")
    save_base_model(base, tokenizer, tmp_path)
    model = str(tmp_path)
    tasks = [encode_task(tokenizer, N, "multi_step") for N in (4, 16, 64)]
    assert read_interference(model, tasks[0]) is None
    newest, older = ({name: getattr(task, name) for name in QUESTION_FIELDS} for task in tasks[:2])
    older = {name: value for name, value in older.items() if value is not None and name not in ("keyed", "prompt")}
    rows = [newest | {"interference": 0.25}, older | {"interference": 0.5}]
    other = tmp_path / "told"
    save_base_model(base, tokenizer, other)
    (other / "warmup.json").write_text(json.dumps({"prompts": rows}), "utf-8")
    assert [read_interference(str(other), task) for task in tasks] == [0.25, 0.5, None]
