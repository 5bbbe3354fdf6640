"""The command: what it refuses, and how, and which prompts a calibration keeps."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import transformers

from memrl.calibrate import ProgressLine, calibrate, make_recipe
from memrl.policy.base_model import encode_task, load_base_model, save_base_model
from memrl.policy.calibration import measure_prior
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.questions import RECORD
from memrl.warmup_config import WarmupConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": ""}, "output must name the folder to write, got nothing"),
        ({"N": "1"}, "N must be at least 2, got 1"),
        ({"N": "4,1e9"}, "N must be at most 131,072, got 1000000000"),
        ({"N": "8,x"}, "N must be an integer, got 'x'"),
        ({"env_type": "single"}, "env_type must be one of single_step, multi_step, got 'single'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": 1e300}, "learning_rate must be at most 1, got 1e+300"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"output": __file__}, "output must be a folder, got"),
        ({"model": "/no/such/folder"}, "model must be embedded, a readable model folder"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        WarmupConfig(**({"output": "out"} | fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output", ["/proc/out", f"{__file__}/out", f"{__file__}/out/below"])
def test_a_folder_that_can_not_be_written_is_refused_before_a_model_is_read(output):
    with pytest.raises(ValueError, match=r"^output must be a folder that can be written, got .+ \(.+\)$"):
        calibrate(WarmupConfig(output=output, model="scratch"))


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_refused_before_a_model_is_read(tmp_path, device):
    with pytest.raises(ValueError, match=rf"^device must be one that torch has here, got {device} \(.+\)$"):
        calibrate(WarmupConfig(output=str(tmp_path), model="scratch", device=device))


def test_a_model_without_layers_for_adapters_is_refused_before_the_work(tmp_path):
    tokenizer = build_embedded_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    save_base_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "raw")
    with pytest.raises(ValueError, match=r"^model must have linear layers .* beside its head, got GPT2LMHeadModel$"):
        calibrate(WarmupConfig(model=str(tmp_path / "raw"), N="8", output=str(tmp_path / "out")))
    assert [*(tmp_path / "out").iterdir()] == []


def test_without_a_terminal_a_line_says_every_ten_seconds_how_far_it_is(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("memrl.calibrate.time.monotonic", lambda: now)
    line = ProgressLine()
    for done in range(1, 26):
        now = float(done)
        line.show("head", done, 2500)
    assert capsys.readouterr().out.splitlines() == ["head: 10 of 2,500", "head: 20 of 2,500"]


def test_the_command_refuses_bad_input_in_one_line_without_torch():
    code = (
        "import sys\n"
        "from memrl.warmup_train import main\n"
        "try:\n    main(['model=/no/such/folder', 'output=out'])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert done.stderr.startswith("error: model must be")
    assert done.stderr.count("\n") == 1


def test_only_a_model_from_scratch_trains_to_the_end():
    assert not make_recipe(WarmupConfig(model="scratch", output="out")).stop_early
    assert make_recipe(WarmupConfig(output="out", seed=7, steps=5)).stop_early
    assert make_recipe(WarmupConfig(output="out", seed=7, steps=5)).seed == 7


def test_a_folder_is_calibrated_for_sequences(tmp_path):
    save_base_model(build_embedded_model(seed=2), build_embedded_tokenizer(), tmp_path / "raw")
    fields: dict[str, Any] = {"N": "2", "env_type": "multi_step", "steps": 150, "learning_rate": 3e-3}
    config = WarmupConfig(model=str(tmp_path / "raw"), secret_length="20", output=str(tmp_path / "a"), **fields)
    (prompt,) = calibrate(config).prompts
    assert prompt.task.secret_length == 20
    assert prompt.prior.kl_bits < 1.0
    again = WarmupConfig(model=config.output, secret_length="3", output=str(tmp_path / "b"), **fields)
    assert [prompt.task.secret_length for prompt in calibrate(again).prompts] == [3, 20]
    with pytest.raises(ValueError, match="env_type must be multi_step where secret_length is set"):
        WarmupConfig(secret_length="3", output="out")
    with pytest.raises(ValueError, match="secret_length must be at most 1024 at N=2, got 1025"):
        WarmupConfig(secret_length="1025", output="out", **fields)


def test_a_folder_is_calibrated_and_keeps_what_it_was_calibrated_for(tmp_path):
    save_base_model(build_embedded_model(seed=2), build_embedded_tokenizer(), tmp_path / "raw")
    fields = {"env_type": "multi_step", "steps": 40, "learning_rate": 3e-3}
    first = WarmupConfig(model=str(tmp_path / "raw"), N="3", output=str(tmp_path / "a"), **fields)
    assert [prompt.task.N for prompt in calibrate(first).prompts] == [3]
    second = WarmupConfig(model=first.output, N="5", output=str(tmp_path / "b"), **fields)
    results = calibrate(second).prompts
    assert [prompt.task.N for prompt in results] == [5, 3]
    model, tokenizer = load_base_model(second.output)
    for prompt in results:
        written = measure_prior(model, encode_task(tokenizer, prompt.task.N, "multi_step"))
        assert written.kl_bits == pytest.approx(prompt.prior.kl_bits, abs=1e-6)
        assert written.kl_bits < 0.2
    record = json.loads((tmp_path / "b" / RECORD).read_text())
    assert [row["N"] for row in record["prompts"]] == [5, 3]
    assert len(record["first_losses"]) == 20
    assert record["method"] == "full"
