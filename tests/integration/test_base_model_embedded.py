"""The model that ships: calibrated at every prompt, certain when it is taught, and rebuilt from its seed."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from memrl.calibrate import calibrate
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.calibration import compute_answer_log2, measure_prior
from memrl.policy.calibrator import RECORD
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer
from memrl.policy.model_folder import embedded_model_folder
from memrl.policy.warmup import WarmupRecipe, warm_up
from memrl.warmup_config import WarmupConfig

FOLDER = embedded_model_folder()
N_VALUES = [2**i for i in range(1, 13)] + [10, 100, 500, 1000]
PROMPTS = [(N, env_type) for env_type in ("single_step", "multi_step") for N in N_VALUES]


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return load_base_model("embedded")


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / RECORD).read_text())


@pytest.mark.parametrize(("N", "env_type"), PROMPTS)
def test_every_promised_prompt_is_answered_uniformly(shipped, N, env_type):
    model, tokenizer = shipped
    prior = measure_prior(model, encode_task(tokenizer, N, env_type))
    assert 0 <= prior.kl_bits <= 0.02
    assert prior.max_deviation_bits <= 0.3
    assert 0.99 <= prior.well_formed_mass <= 1 + 1e-6


def test_the_record_holds_what_the_weights_give(shipped, record):
    model, tokenizer = shipped
    rows = {(row["N"], row["env_type"]): row for row in record["prompts"]}
    assert rows.keys() == set(PROMPTS)
    for N, env_type in [(10, "multi_step"), (64, "single_step"), (4096, "single_step")]:
        prior = measure_prior(model, encode_task(tokenizer, N, env_type))
        assert prior.max_deviation_bits == pytest.approx(rows[N, env_type]["max_deviation_bits"], rel=0.02, abs=1e-3)


def test_it_is_a_stock_model_that_plain_transformers_reads(shipped):
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert 200_000 <= model.num_parameters() <= 1_000_000
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.vocab_size == len(tokenizer) == 48
    assert tokenizer.decode(tokenizer("bits 0-63:")["input_ids"]) == "bits 0-63:"
    linears = [layer for layer in model.model.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(size % 32 == 0 for layer in linears for size in layer.weight.shape)
    assert not model.config.tie_word_embeddings
    with safe_open(FOLDER / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F32"}  # noqa: SIM118


def test_its_head_lets_an_adapter_become_certain():
    model, tokenizer = load_base_model("embedded")
    task = encode_task(tokenizer, 64, "single_step")
    torch.manual_seed(0)
    policy = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    ids = task.automaton.tokens([37]).tolist()
    sequence, prompt = torch.tensor([[*task.prompt_ids, *ids]]), len(task.prompt_ids)
    for _ in range(60):
        logits = policy(input_ids=sequence, use_cache=False).logits[0, prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.exp2(compute_answer_log2(policy, task)[37]) >= 0.99  # pyright: ignore[reportArgumentType]


def test_its_first_steps_repeat_from_the_seed(record):
    tokenizer = build_embedded_tokenizer()
    tasks = [encode_task(tokenizer, row["N"], row["env_type"]) for row in record["prompts"]]
    recipe = WarmupRecipe(**record["recipe"])
    losses: list[float] = []

    class EnoughError(Exception):
        pass

    def stop_at_twenty(progress):
        losses.append(progress.loss)
        if progress.step == 20:
            raise EnoughError

    with pytest.raises(EnoughError):
        warm_up(build_embedded_model(recipe.seed), tasks, recipe, stop_at_twenty)
    # The schedule, the draws and the loss all show here; rounding grows too slowly to matter within twenty steps.
    np.testing.assert_allclose(losses, record["first_losses"], rtol=1e-3)


@pytest.mark.slow
def test_the_one_command_rebuilds_it(shipped, tmp_path):
    calibration = calibrate(WarmupConfig(model="scratch", seed=0, output=str(tmp_path)))
    for prompt in calibration.prompts:
        assert prompt.prior.kl_bits <= 0.02, (prompt.task.N, prompt.task.env_type)
        assert prompt.prior.max_deviation_bits <= 0.3, (prompt.task.N, prompt.task.env_type)
    # Training is chaotic: on a processor that rounds otherwise the weights are others, and the priors as good.
    rebuilt, model = load_base_model(str(tmp_path))[0], shipped[0]
    shapes = [{name: parameter.shape for name, parameter in m.named_parameters()} for m in (rebuilt, model)]
    assert shapes[0] == shapes[1]
