"""The model that ships: calibrated at every prompt, certain when it is taught, and rebuilt from its seed."""

import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from memrl.calibrate import calibrate
from memrl.policy.base_model import encode_task, load_base_model
from memrl.policy.calibration import compute_answer_log2, measure_prior
from memrl.policy.calibrator import measure_worst_key
from memrl.policy.embedded import build_embedded_model, build_embedded_tokenizer, list_embedded_questions
from memrl.policy.interference import measure_interference
from memrl.policy.keys import draw_keys, held_out_keys
from memrl.policy.model_folder import embedded_model_folder
from memrl.policy.questions import RECORD, read_questions
from memrl.policy.warmup import WarmupRecipe, warm_up
from memrl.warmup_config import WarmupConfig

FOLDER = embedded_model_folder()
QUESTIONS = list_embedded_questions()
UNSEEN_KEY = 76_144


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return load_base_model("embedded")


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / RECORD).read_text())


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: "-".join(map(str, question)))
def test_every_promised_prompt_is_answered_uniformly(shipped, question):
    model, tokenizer = shipped
    task = encode_task(tokenizer, *question)
    prior = measure_prior(model, task.with_key(UNSEEN_KEY) if task.keyed else task)
    bits = task.answer_format.signal_bits
    # Of many sequences it is estimated from some, and may be off to either side.
    assert -0.1 <= prior.kl_bits <= (0.05 if bits <= 64 else 0.12)
    assert prior.max_deviation_bits <= (2.0 if bits <= 64 else 3.0)
    assert 0.97 <= prior.well_formed_mass <= (1 + 1e-6 if bits <= 12 else 1.1)


def test_the_record_holds_what_the_weights_give(shipped, record):
    model, tokenizer = shipped
    missed = [question for question in QUESTIONS if question not in read_questions(FOLDER)]
    assert {(N, length, keyed) for N, _, _, _, _, length, keyed in missed} == {(16, 128, False), (16, 32, True)}
    for question, row in list(zip(QUESTIONS, record["prompts"], strict=True))[5:100:30]:
        task = encode_task(tokenizer, *question)
        prior = measure_worst_key(model, task)[0]
        assert prior.max_deviation_bits == pytest.approx(row["max_deviation_bits"], rel=0.02, abs=1e-3)
        assert row["num_keys"] == (100_000 if task.keyed else None)
        if row["interference"] is not None:
            assert measure_interference(model, task) == pytest.approx(row["interference"], abs=1e-3)


def test_the_places_of_an_answer_hardly_interfere(record):
    measured = [row["interference"] for row in record["prompts"] if row["interference"] is not None]
    assert len(measured) > 80
    assert np.mean(measured) <= 0.35
    assert max(measured) <= 0.35


def test_depth_and_last_tokens_are_read_linearly(shipped):
    """A reader fitted on some random sequences, on others."""
    model, tokenizer = shipped
    task = encode_task(tokenizer, 2, "multi_step", secret_length=256)
    (states, symbols), (others, truth) = (read_states(model, task, 24, seed) for seed in (0, 1))
    depth = np.tile(np.arange(256), 24)
    off = np.abs(fit_reader(states, depth)(others) - depth)
    assert np.mean(off) <= 1
    for lag in range(2):
        late = np.flatnonzero(depth > lag)
        written, other = (np.roll(each, lag + 1, axis=1).ravel()[late] for each in (symbols, truth))
        assert np.mean(fit_reader(states[late], written)(others[late]) == other) >= 0.95


@pytest.mark.parametrize(("env_type", "length"), [("single_step", None), ("multi_step", 16)])
def test_the_digits_of_a_key_are_read_linearly_at_every_place(shipped, env_type, length):
    model, tokenizer = shipped
    task = encode_task(tokenizer, 16, env_type, secret_length=length, keyed=True)
    keys = draw_keys(np.random.default_rng(0), 400).tolist() + held_out_keys(100).tolist()
    states = [read_states(model, task.with_key(key), 1, key)[0] for key in keys]
    row = np.repeat(np.arange(len(keys)), [len(each) for each in states])
    states, trained = torch.cat(states), row < 400
    for place in range(5):
        digit = np.array([int(str(key)[place]) if place < len(str(key)) else 10 for key in keys])[row]
        said = fit_reader(states[torch.from_numpy(trained)], digit[trained])(states[torch.from_numpy(~trained)])
        assert np.mean(said == digit[~trained]) >= 0.75


def read_states(model, task, count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """The head's input at every place of some random answers, (places, width), and the answers' digits."""
    answers = task.answer_format
    digits = np.random.default_rng(seed).integers(answers.radix, size=(count, answers.num_env_steps))
    seen: list[torch.Tensor] = []
    watch = model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    for row in digits:
        with torch.no_grad():
            model(input_ids=torch.tensor([[*task.prompt_ids, *task.automaton.tokens(row)[:-1]]]))
    watch.remove()
    return torch.cat([each[len(task.prompt_ids) - 1 :] for each in seen]), digits


def fit_reader(states: torch.Tensor, targets: np.ndarray):
    """A linear classifier of states, by Adam on its cross-entropy."""
    mean, spread = states.mean(0), states.std(0)
    weights = torch.zeros(states.shape[1] + 1, int(targets.max()) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)

    def score(given: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad((given - mean) / spread, (0, 1), value=1.0) @ weights

    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(score(states), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda given: score(given).argmax(1).numpy()


def test_its_head_has_room_for_certainty(shipped):
    """The final norm bounds what the head sees, and so the log-odds of one digit over another: at least ±7."""
    model = shipped[0]
    digits = [shipped[1].convert_tokens_to_ids(digit) for digit in "0123456789"]
    rows = model.lm_head.weight[digits] * model.model.norm.weight * 96**0.5
    odds = torch.cdist(rows, rows)[~torch.eye(10, dtype=torch.bool)].detach()
    assert odds.min() >= 7


def test_it_is_a_stock_model_that_plain_transformers_reads(shipped):
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert 200_000 <= model.num_parameters() <= 1_000_000
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.vocab_size == len(tokenizer) == 112
    assert tokenizer.decode(tokenizer("bits 0-63:")["input_ids"]) == "bits 0-63:"
    assert tokenizer.decode(tokenizer("k90137 0-63:")["input_ids"]) == "k90137 0-63:"
    assert tokenizer("k7 0-63:")["input_ids"][2:] == tokenizer(" 0-63:")["input_ids"]
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
    assert np.exp2(compute_answer_log2(policy, task)[37]) >= 0.997  # pyright: ignore[reportArgumentType]


def test_its_first_steps_repeat_from_the_seed(record):
    tokenizer = build_embedded_tokenizer()
    tasks = [encode_task(tokenizer, *question) for question in QUESTIONS]
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


@pytest.mark.long
def test_the_one_command_rebuilds_it(shipped, tmp_path):
    calibration = calibrate(WarmupConfig(model="scratch", seed=0, output=str(tmp_path)))
    for prompt in calibration.prompts:
        assert prompt.prior.kl_bits <= 0.15, (prompt.task.N, prompt.task.env_type, prompt.task.secret_length)
        assert prompt.interference <= 0.45 or math.isnan(prompt.interference)
    # Training is chaotic: on a processor that rounds otherwise the weights are others, and the priors as good.
    rebuilt, model = load_base_model(str(tmp_path))[0], shipped[0]
    shapes = [{name: parameter.shape for name, parameter in m.named_parameters()} for m in (rebuilt, model)]
    assert shapes[0] == shapes[1]
