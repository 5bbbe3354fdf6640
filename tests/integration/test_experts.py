"""Adapters on the experts of mixtures are PEFT's, cell by cell, whoever the neighbors in the pack are."""

import copy
import math

import numpy as np
import peft
import pytest
import torch
import transformers
from naive_policy import compare_adapters, list_episodes, plant_forest, read_logprobs
from one_cell import score_tokens
from test_base_model_architectures import COMMON, TOKENIZER, build_model
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from memrl.config import TrainConfig
from memrl.policy.activations import Activations, estimate_activation_bytes
from memrl.policy.adapter_pack import AdapterPack, describe_adapter
from memrl.policy.autograd_network import AutogradNetwork
from memrl.policy.base_model import encode_task
from memrl.policy.experts import PackedExperts, describe_projections, find_experts
from memrl.policy.packed import list_layers
from memrl.policy.trie_walk import walk_tries
from memrl.rollout.adapter_files import publish_adapter
from memrl.rollout.in_process import InProcessSampler, start_generators
from memrl.rollout.vllm_actor import name_for_engine

pytestmark = pytest.mark.filterwarnings("ignore:the routers of:UserWarning")

NAMES = ["mixtral, experts", "qwen3 with experts"]
CELLS = [
    TrainConfig(N=16, seed=1, lora_rank=2, learning_rate=1e-3, group_size=6),
    TrainConfig(N=10, seed=2, lora_rank=8, learning_rate=3e-3, group_size=4, lora_alpha=8.0),
    TrainConfig(
        N=8, seed=3, env_type="multi_step", reward_type="per_bit", lora_rank=3, learning_rate=2e-3, group_size=5
    ),
]
TASKS = [encode_task(TOKENIZER, c.N, c.env_type) for c in CELLS]


@pytest.fixture
def exact_routers_and_norms(monkeypatch):
    """Hugging Face rounds norms and routers to float32 even in a float64 model; 1e-9 needs all 53 bits."""

    def normalize(norm, x):
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    def route(router, x):
        logits = nn.functional.linear(x.reshape(-1, router.hidden_dim), router.weight)
        value, index = torch.topk(logits.softmax(-1), router.top_k, dim=-1)
        return logits, value / value.sum(-1, keepdim=True), index

    for module in (mixtral.MixtralRMSNorm, qwen3_moe.Qwen3MoeRMSNorm):
        monkeypatch.setattr(module, "forward", normalize)
    for module in (mixtral.MixtralTopKRouter, qwen3_moe.Qwen3MoeTopKRouter):
        monkeypatch.setattr(module, "forward", route)


def build_exact(name):
    """A frozen float64 model whose experts run as plain loops, since torch's grouped kernels take no float64."""
    model = build_model(name).double().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("gate.weight"):  # routers of distinct minds, or a tie would decide
                parameter.normal_(generator=torch.Generator().manual_seed(len(parameter_name)))
    model.set_experts_implementation("eager")
    return model


class PackedCells:
    """A pack that learns from its own samples by a fixed advantage of each answer."""

    def __init__(self, model, cells, groups=None):
        self.cells, self.tasks = list(cells), [TASKS[CELLS.index(c)] for c in cells]
        self.adapters = AdapterPack(groups or list_layers(model), self.cells, dtype=model.dtype)
        self.network = AutogradNetwork(model, *self.plant(), self.adapters, Activations())
        self.generators = start_generators(self.cells)

    def plant(self):
        """Prompts and roots of the cells there are."""
        self.forest = plant_forest([t.automaton for t in self.tasks], [t.answer_format.digits(5) for t in self.tasks])
        return [task.prompt_ids for task in self.tasks], np.arange(len(self.tasks))

    def learn(self):
        """One walk and its gradient; returns each cell's episodes."""
        counts = np.array([[c.group_size] for c in self.cells])
        walk = walk_tries(self.network, self.forest, counts, InProcessSampler(self.cells, self.generators, self.forest))
        loss = torch.zeros((), dtype=torch.float64)
        for cell, path, tokens, drawn in zip(
            walk.outcome_cell, walk.outcome_path, walk.outcome_tokens, walk.outcome_counts, strict=True
        ):
            weight = float(drawn.sum()) * judge(tokens[tokens >= 0].tolist()) / self.cells[cell].group_size
            loss = loss - weight * walk.edge_logprob[path[path >= 0]].sum()
        self.network.backpropagate(loss)
        return [list_episodes(walk, cell, 1)[0] for cell in range(len(self.cells))]

    def keep(self, cells):
        self.adapters.keep(np.array(cells))
        parts = (self.cells, self.tasks, self.generators)
        self.cells, self.tasks, self.generators = ([part[cell] for cell in cells] for part in parts)
        self.network.plant(*self.plant(), len(cells))


def judge(tokens):
    """An advantage for an answer, of either sign."""
    return math.sin(sum((place + 1) * token for place, token in enumerate(tokens)))


def read_config(cell, adapters):
    """The published adapter_config.json as PEFT's own, for training."""
    described = describe_adapter(cell, list(adapters.slots))
    left_out = ("peft_type", "base_model_name_or_path", "inference_mode")
    return peft.LoraConfig(**{n: v for n, v in described.items() if n not in left_out})  # pyright: ignore[reportArgumentType]


class PlainCell:
    """The same cell, trained by PEFT and torch.optim.Adam."""

    def __init__(self, model, cell, adapters, tensors):
        self.model = peft.get_peft_model(copy.deepcopy(model), read_config(cell, adapters))
        loaded = peft.set_peft_model_state_dict(self.model, tensors)
        assert not loaded.unexpected_keys
        assert not [key for key in loaded.missing_keys if "lora_" in key]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=cell.learning_rate, eps=cell.adam_epsilon)
        self.prompt = TASKS[CELLS.index(cell)].prompt_ids

    def update(self, episodes):
        scored = score_tokens(self.model, self.prompt, episodes)
        loss = -torch.stack([judge(tokens) * s.sum() for tokens, s in zip(episodes, scored, strict=True)]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def export(self):
        return peft.get_peft_model_state_dict(self.model)


@pytest.mark.parametrize("name", NAMES)
def test_cells_train_as_peft_does_while_their_pack_shrinks(name, exact_routers_and_norms):
    model = build_exact(name)
    pack = PackedCells(model, CELLS)
    start = [pack.adapters.export_peft(cell) for cell in range(3)]
    plain = [PlainCell(model, cell, pack.adapters, start[i]) for i, cell in enumerate(CELLS)]
    for update in range(4):
        if update == 2:
            before = [pack.adapters.export_peft(cell) for cell in (0, 2)]
            pack.keep([0, 2])
            assert pack.adapters.rank == 3
            assert [compare_adapters(pack.adapters.export_peft(i), before[i]) for i in range(2)] == [0, 0]
            plain = [plain[0], plain[2]]
        episodes = pack.learn()
        pack.adapters.update()
        for i, cell in enumerate(plain):
            cell.update(episodes[i])
            packed = pack.adapters.export_peft(i)
            assert compare_adapters(packed, cell.export()) <= 1e-9
    for cell, kept in ((0, 0), (2, 1)):
        moved = pack.adapters.export_peft(kept)
        of_experts = [key for key in moved if ".experts." in key]
        assert len(of_experts) == 8
        assert all((moved[key] - start[cell][key]).abs().max() > 1e-4 for key in of_experts)


@pytest.mark.parametrize("name", NAMES)
def test_a_cells_gradient_does_not_depend_on_its_neighbors(name, exact_routers_and_norms):
    model, generator = build_exact(name), torch.Generator().manual_seed(0)
    pack = PackedCells(model, CELLS)
    for cell in range(3):
        tensors = pack.adapters.export_peft(cell)
        drawn = {n: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in tensors.items()}
        pack.adapters.import_peft(cell, drawn)
    episodes = pack.learn()
    scale = pack.adapters.gradient.abs().max().item()
    assert scale > 1e-2
    for cell, config in enumerate(CELLS):
        alone = PackedCells(model, [config])
        alone.adapters.import_peft(0, pack.adapters.export_peft(cell))
        assert alone.learn() == [episodes[cell]]
        together, rank = pack.adapters, config.lora_rank
        for slot in together.slots.values():
            own = alone.adapters.slots[slot.name]
            for view in ("view_blocks_A", "view_blocks_B"):
                got = getattr(together, view)(together.gradient, slot)[cell]
                expected = getattr(alone.adapters, view)(alone.adapters.gradient, own)[0]
                torch.testing.assert_close(got[:, :rank], expected, rtol=0, atol=1e-13 * scale)
                assert not got[:, rank:].any(), "padding gets no gradient"


def build_experts(kind):
    """A module of experts of random weights in float64, of seven experts of which a token goes to two."""
    torch.manual_seed(0)
    if kind == "gpt_oss":
        config = transformers.GptOssConfig(hidden_size=8, intermediate_size=6, num_local_experts=7)
        module = GptOssExperts(config)
    else:
        config = transformers.MixtralConfig(hidden_size=8, intermediate_size=6, num_local_experts=7)
        module = mixtral.MixtralExperts(config)
    config._experts_implementation = "eager"
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.double().requires_grad_(False)


def apply_each_alone(module, path, adapters, pairs, x, index, weights):
    """Each cell's rows through the module's own loop, its weights the base's with the cell's adapter added."""
    rows = len(x) // adapters.num_cells
    out = []
    for cell in range(adapters.num_cells):
        changed = {}
        for leaf in ("gate_up_proj", "down_proj"):
            A, B = pairs[f"{path}.{leaf}"]
            delta = torch.einsum("erd,ero->eod", A[cell], B[cell]) * adapters.scale[cell]
            changed[leaf] = getattr(module, leaf) + (delta.mT if module.is_transposed else delta)
        own = slice(cell * rows, (cell + 1) * rows)
        out.append(torch.func.functional_call(module, changed, (x[own], index[own], weights[own])))
    return torch.cat(out)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_packed_experts_and_their_gradient_equal_a_plain_loop_by_autograd(kind):
    """Transposed weights, biases and another gate come with gpt_oss; two experts get no tokens."""
    module, path, rows = build_experts(kind), "layer.experts", 9
    adapters = AdapterPack([describe_projections({path: module})[path]], CELLS, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for cell in range(3):
        tensors = adapters.export_peft(cell)
        drawn = {n: 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in tensors.items()}
        adapters.import_peft(cell, drawn)
    x = torch.randn((3 * rows, 8), generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand((3 * rows, 2), generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.rand((3 * rows, 5), generator=generator).argsort(1)[:, :2] + 1  # neither expert 0 nor expert 6
    index[:rows, 0] = 5 - index[:rows, 1] % 5  # of unlike sizes: one cell's tokens crowd together

    packed = PackedExperts(path, module)
    packed.attach(adapters)
    got = packed(x, index, weights)
    leaves = {
        name: tuple(
            view(adapters.parameters, slot).clone().requires_grad_()
            for view in (adapters.view_blocks_A, adapters.view_blocks_B)
        )
        for name, slot in adapters.slots.items()
    }
    expected = apply_each_alone(module, path, adapters, leaves, x, index, weights)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)

    slope = torch.randn(got.shape, generator=generator, dtype=torch.float64)
    flat = [leaf for pair in leaves.values() for leaf in pair]
    wanted_x, wanted_weights, *wanted = torch.autograd.grad(expected, [x, weights, *flat], slope)
    adapters.gradient.fill_(1.0)  # backward adds to what is there
    got_x, got_weights = torch.autograd.grad(got, [x, weights], slope)
    torch.testing.assert_close(got_x, wanted_x, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(got_weights, wanted_weights, rtol=1e-12, atol=1e-10)
    read = (adapters.view_blocks_A, adapters.view_blocks_B)
    views = [view(adapters.gradient, slot) for slot in adapters.slots.values() for view in read]
    for added, by_autograd in zip(views, wanted, strict=True):
        torch.testing.assert_close(added - 1.0, by_autograd, rtol=1e-10, atol=1e-10)
        assert torch.equal(added[:, [0, 6]], torch.ones_like(added[:, [0, 6]])), "no token, no gradient"
        assert by_autograd[:, 1:6].abs().sum((2, 3)).max() > 1.0


@pytest.mark.parametrize("name", NAMES)
def test_peft_reads_the_files_of_a_cell_and_computes_its_logits(name, tmp_path, exact_routers_and_norms):
    model, generator = build_exact(name), torch.Generator().manual_seed(0)
    pack = PackedCells(model, CELLS)
    tensors = {
        n: 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for n, t in pack.adapters.export_peft(1).items()
    }
    pack.adapters.import_peft(1, tensors)
    assert compare_adapters(pack.adapters.export_peft(1), tensors) == 0
    got = read_logprobs(pack.network.prefill(), model.config.vocab_size)[1]
    prompt = torch.tensor([TASKS[1].prompt_ids])
    described = describe_adapter(CELLS[1], list(pack.adapters.slots))
    arrays = {n: t.numpy() for n, t in tensors.items()}
    for reader, named in {"peft": arrays, "engine": name_for_engine(arrays, model.config.model_type)}.items():
        files = publish_adapter(tmp_path, reader, named, described)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), files)
        with torch.no_grad():
            expected = torch.log_softmax(loaded(input_ids=prompt).logits[0, -1], dim=-1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    with torch.no_grad():
        plain = torch.log_softmax(model(input_ids=prompt).logits[0, -1], dim=-1)
    assert (got - plain).abs().max() > 1e-2


OTHERS = {
    "qwen2, a shared expert": lambda: transformers.Qwen2MoeConfig(
        **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=32
    ),
    "qwen3, a layer without experts": lambda: transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[0]
    ),
    "gemma4, experts beside a dense block": lambda: transformers.Gemma4TextConfig(
        **COMMON,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=48,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        layer_types=["full_attention"] * 2,
    ),
    "gpt-oss, transposed and biased": lambda: transformers.GptOssConfig(
        **COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=64, rope_parameters=None
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_peft_computes_the_logits_of_other_mixtures(name):
    """Dense layers beside experts have names that PEFT takes for the experts' own in a model of their kind."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(OTHERS[name]()).eval().requires_grad_(False)
    adapters = AdapterPack(list_layers(model), CELLS[:2], dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for cell in range(2):
        tensors = adapters.export_peft(cell)
        adapters.import_peft(cell, {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()})
    prompts = [task.prompt_ids for task in TASKS[:2]]
    network = AutogradNetwork(model, prompts, np.arange(2), adapters, Activations())
    got = read_logprobs(network.prefill(), model.config.vocab_size)
    for cell in range(2):
        loaded = PlainCell(model, CELLS[cell], adapters, adapters.export_peft(cell))
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([TASKS[cell].prompt_ids])).logits[0, -1]
            expected = torch.log_softmax(logits, dim=-1)
        torch.testing.assert_close(got[cell], expected, rtol=0, atol=1e-4)
    assert (got[0] - got[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_learns_its_secret_by_experts_alone(name):
    model = build_model(name).eval().requires_grad_(False)
    groups = [group for group in list_layers(model) if ".experts." in next(iter(group))]
    assert len(groups) == 4
    cell = TrainConfig(N=16, algorithm="sft", lora_rank=8, learning_rate=3e-3)
    task = encode_task(TOKENIZER, cell.N, cell.env_type)
    adapters = AdapterPack(groups, [cell], dtype=torch.float32)
    network = AutogradNetwork(model, [task.prompt_ids], np.arange(1), adapters, Activations())
    forest = plant_forest([task.automaton], [task.answer_format.digits(11)])
    sampler = InProcessSampler([cell], start_generators([cell]), forest)
    absorbed = []
    for _ in range(30):
        walk = walk_tries(network, forest, np.array([[1]]), sampler)
        absorbed.append(float(walk.secret_log2[0]) + math.log2(cell.N))
        network.backpropagate(-walk.edge_logprob.sum())
        adapters.update()
    assert absorbed[0] < 0
    assert absorbed[-1] > math.log2(0.9 * cell.N)


def test_memory_counts_experts_as_often_as_a_token_goes_to_one():
    model = build_model("mixtral, experts")
    projections = [p for module in describe_projections(find_experts(model)).values() for p in module.values()]
    # Of two layers: each token to two experts, gate and up 192 of 64, down 64 of 96; in float32.
    per_token = 4 * 2 * 2 * (64 + 192 + 96 + 64)
    prompts = [task.prompt_ids for task in TASKS]
    # The wider tree is that of N=16: seven answers of at most nine tokens.
    assert estimate_activation_bytes(projections, prompts, CELLS) == per_token * 3 * (max(map(len, prompts)) + 7 * 9)
