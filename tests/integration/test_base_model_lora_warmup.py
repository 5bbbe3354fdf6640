"""A model of another kind, from random weights to a memorized secret: a LoRA warm-up that is merged, then training."""

import subprocess
import sys

import pytest
import torch
from test_base_model_architectures import build_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy.base_model import encode_task, load_base_model, save_base_model
from memrl.policy.calibration import measure_prior
from memrl.policy.embedded import build_embedded_tokenizer

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}0-{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}-0{% endif %}"


@pytest.fixture(scope="module")
def warmed(tmp_path_factory) -> str:
    """A Gemma with a chat template, warmed up by the command."""
    tokenizer = build_embedded_tokenizer()
    tokenizer.chat_template = TEMPLATE
    base, output = tmp_path_factory.mktemp("models") / "base", tmp_path_factory.mktemp("models") / "warmed"
    save_base_model(build_model("gemma"), tokenizer, base)
    words = [
        f"model={base}",
        f"output={output}",
        "N=4,8",
        "env_type=multi_step",
        "prompt_format=chat",
        "method=lora",
        "lora_rank=16",
    ]
    command = [sys.executable, "-m", "memrl.warmup_train", *words, "steps=300", "learning_rate=3e-3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 prompts calibrated" in done.stdout
    return str(output)


def test_the_merged_folder_is_a_plain_model_that_answers_uniformly(warmed):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(warmed), AutoTokenizer.from_pretrained(warmed)
    base = build_model("gemma")
    assert model.state_dict().keys() == base.state_dict().keys()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, base.get_parameter(name))}
    assert changed == {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in (*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))
    }
    ours, our_tokenizer = load_base_model(warmed)
    for N in (4, 8):
        chat, plain = (encode_task(tokenizer, N, "multi_step", style) for style in ("chat", "plain"))
        assert len(chat.prompt_ids) == len(plain.prompt_ids) + 4
        assert measure_prior(model, chat).is_calibrated
        assert encode_task(our_tokenizer, N, "multi_step", "chat").prompt_ids == chat.prompt_ids
        assert measure_prior(ours, chat).kl_bits == pytest.approx(measure_prior(model, chat).kl_bits, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cells_memorize_over_it_behind_its_chat_template(warmed, dtype):
    shared = {"N": 8, "env_type": "multi_step", "model": warmed, "prompt_format": "chat", "dtype": dtype}
    shared |= {"learning_rate": 1e-2, "n_steps": 200}
    channels = [{"algorithm": "sft"}, {"reward_type": "binary", "group_size": 32}]
    pack = Pack([TrainConfig(**shared, **channel) for channel in channels])
    assert pack.state.adapters.parameters.dtype == torch.float32
    while not pack.finished:
        pack.update()
    rows, _ = pack.drain()
    assert [row["status"] for row in rows] == ["memorized"] * 2


def test_a_prompt_that_it_was_not_warmed_up_for_is_refused_with_the_command_to_run(warmed):
    with pytest.raises(ValueError, match=r"memrl\.warmup_train") as error:
        Pack([TrainConfig(N=8, model=warmed)])
    assert "\n" not in str(error.value)
