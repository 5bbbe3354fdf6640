"""Networks of a pack: the hand-written decoder against autograd, and both against plain forward passes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_policy import keep_norms_in_dtype, read_logprobs
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memrl.config import TrainConfig
from memrl.policy import llama
from memrl.policy.activations import Activations, RecomputedActivations
from memrl.policy.adapter_pack import AdapterPack, find_linears
from memrl.policy.autograd_network import AutogradNetwork
from memrl.policy.compiled_decoder import CompiledDecoderNetwork
from memrl.policy.kernels import load_kernels
from memrl.policy.packed import build_network
from memrl.policy.panels import PanelLinear, count_weights, keep_panels

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, 23]]
ROOT_CELL = np.arange(3)
CELLS = [
    TrainConfig(seed=1, lora_rank=2),
    TrainConfig(seed=2, lora_rank=4, lora_alpha=8.0),
    TrainConfig(seed=3, lora_rank=1),
]


def build_model(kind, config_kind, dtype=torch.float64, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config_kind(**{**SIZES, **more})).to(dtype).eval().requires_grad_(False)


def move_adapters(adapters):
    """Makes every B non-zero so that adapters affect the logits and A's have gradients."""
    for cell in range(adapters.num_cells):
        generator = torch.Generator().manual_seed(cell)
        tensors = adapters.export_peft(cell)
        for name, tensor in sorted(tensors.items()):
            if "lora_B" in name:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        adapters.import_peft(cell, tensors)
    return adapters


def compile_kernels(dtype):
    library = load_kernels(dtype)
    assert library is not None, "the tests need a C compiler"
    return library


def pack_compiled(model, cells=CELLS, prompts=PROMPTS, root_cell=ROOT_CELL):
    adapters = AdapterPack(llama.list_siblings(model), cells, dtype=model.dtype)
    library = compile_kernels(model.dtype)
    return CompiledDecoderNetwork(model, prompts, root_cell, move_adapters(adapters), library), adapters


def pack_by_autograd(model, cells=CELLS, prompts=PROMPTS, root_cell=ROOT_CELL, activations=None):
    groups = [{name: linear} for name, linear in find_linears(model).items()]
    adapters = AdapterPack(groups, cells, dtype=torch.float64 if model.dtype == torch.float64 else torch.float32)
    kept = activations or Activations()
    return AutogradNetwork(model, prompts, root_cell, move_adapters(adapters), kept), adapters


LEVELS = [
    ([(0, 3, 0), (0, 4, 0), (1, 3, 0), (2, 9, 0), (2, 8, 0), (2, 7, 0)]),
    ([(0, 10, 1), (0, 11, 0), (0, 12, 0), (2, 13, 2), (2, 14, 1)]),
    ([(0, 15, 2), (2, 16, 0), (2, 17, 0), (2, 18, 1)]),
]
"""A tree of answers: (cell, token, slot of the parent in the level before); the second cell ends after one token."""


def list_paths():
    """Every node's tokens from the first to itself, level by level, in the order of LEVELS."""
    before, paths = {cell: [[]] for cell in range(3)}, []
    for level in LEVELS:
        now = {cell: [] for cell in range(3)}
        for cell, token, parent in level:
            now[cell].append([*before[cell][parent], token])
            paths.append((cell, now[cell][-1]))
        before = now
    return paths


def walk_tree(network):
    """Log-probabilities after every prompt and every node: (3 + nodes, vocabulary), with gradient."""
    logprobs, before = [read_logprobs(network.prefill(), 40)], np.arange(3)
    for level in LEVELS:
        cell, tokens, slots = np.array(level).T
        # Places in the level before; at the first level, where the level before is the prompts, the cell's own.
        parents = np.searchsorted(before, cell) + slots
        logprobs.append(read_logprobs(network.extend(tokens, parents, cell), 40))
        before = cell
    return torch.cat(logprobs)


def draw_weights(logprobs):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(logprobs.shape, generator=generator, dtype=torch.float64).to(logprobs)


def backpropagate(network, logprobs):
    network.backpropagate((draw_weights(logprobs) * logprobs).sum())


def read_gradients(adapters):
    """Every cell's gradient by layer, at its true rank."""
    read = {}
    for slot in adapters.slots.values():
        for cell, rank in enumerate(adapters.ranks):
            read[cell, slot.name, "A"] = adapters.view_A(adapters.gradient, slot)[cell, :rank]
            read[cell, slot.name, "B"] = adapters.view_B(adapters.gradient, slot)[cell, :rank]
    return read


def largest_difference(got, expected):
    assert got.keys() == expected.keys()
    return max(float((got[key] - expected[key]).abs().max()) for key in got)


def largest(tensors):
    return max(float(tensor.abs().max()) for tensor in tensors.values())


def merge(model, adapters, cell):
    """The cell's policy as plain weights, with gradient, and the adapter's matrices as leaves."""
    policy, leaves = copy.deepcopy(model), {}
    for slot in adapters.slots.values():
        rank = adapters.ranks[cell]
        A, B = (v(adapters.parameters, slot)[cell, :rank].clone() for v in (adapters.view_A, adapters.view_B))
        leaves[cell, slot.name, "A"], leaves[cell, slot.name, "B"] = A.requires_grad_(), B.requires_grad_()
        layer = policy.get_submodule(slot.name)
        weight = layer.weight.detach() + (float(adapters.scale[cell]) * B.T @ A).to(layer.weight.dtype)
        del layer.weight
        layer.weight = weight
    return policy, leaves


def compute_plainly(model, adapters):
    """The same log-probabilities and gradients, one row per node, without a cache or shared prompts."""
    nodes = [(cell, []) for cell in range(3)] + list_paths()
    rows, leaves = [], {}
    policies = [merge(model, adapters, cell) for cell in range(3)]
    for cell, path in nodes:
        logits = policies[cell][0](input_ids=torch.tensor([PROMPTS[cell] + path]), use_cache=False).logits[0, -1]
        rows.append(torch.log_softmax(logits, dim=-1))
    logprobs = torch.stack(rows)
    (draw_weights(logprobs) * logprobs).sum().backward()
    for _, mine in policies:
        leaves |= mine
    return logprobs.detach(), {key: leaf.grad for key, leaf in leaves.items()}


SUPPORTED = [
    pytest.param(LlamaForCausalLM, LlamaConfig, {}, id="llama"),
    pytest.param(
        LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 1}, id="llama-tied"
    ),
    pytest.param(
        LlamaForCausalLM, LlamaConfig, {"hidden_size": 36, "intermediate_size": 51, "head_dim": 10}, id="llama-odd"
    ),
    pytest.param(Qwen3ForCausalLM, Qwen3Config, {}, id="qwen3"),
    pytest.param(Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}, id="qwen3-tied"),
]


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_decoder_and_autograd_agree_in_float64(monkeypatch, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, **more)
    (by_hand, ours), (by_autograd, theirs) = pack_compiled(model), pack_by_autograd(model)
    got, expected = walk_tree(by_hand), walk_tree(by_autograd)
    assert float((got - expected).detach().abs().max()) <= 1e-10
    backpropagate(by_hand, got)
    backpropagate(by_autograd, expected)
    assert largest_difference(read_gradients(ours), read_gradients(theirs)) <= 1e-10 * largest(read_gradients(theirs))


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_decoder_agrees_with_plain_passes_in_float64(monkeypatch, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, **more)
    network, adapters = pack_compiled(model)
    got = walk_tree(network)
    expected, gradients = compute_plainly(model, adapters)
    assert float((got.detach() - expected).abs().max()) <= 1e-10
    backpropagate(network, got)
    assert largest_difference(read_gradients(adapters), gradients) <= 1e-10 * largest(gradients)


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_decoder_in_float32_is_near_float64(monkeypatch, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, **more)
    (double, exact), (single, rounded) = pack_compiled(model), pack_compiled(copy.deepcopy(model).float())
    expected, got = walk_tree(double), walk_tree(single)
    assert float((got - expected).detach().abs().max()) <= 1e-4
    for network, logprobs in ((double, expected), (single, got)):
        backpropagate(network, logprobs)
    difference = largest_difference(read_gradients(rounded), read_gradients(exact))
    assert 0 < difference <= 1e-4 * largest(read_gradients(exact))


@pytest.mark.parametrize("silent", [{0}, {1}, {0, 2}, {0, 1, 2}], ids=str)
def test_cells_without_gradient_are_left_out_and_the_others_have_theirs(monkeypatch, silent):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(Qwen3ForCausalLM, Qwen3Config)
    gradients = []
    for network, adapters in (pack_compiled(model), pack_by_autograd(model)):
        logprobs = walk_tree(network)
        of_cell = torch.tensor([0, 1, 2] + [cell for cell, _ in list_paths()])
        speaks = ~torch.isin(of_cell, torch.tensor(sorted(silent)))
        network.backpropagate((draw_weights(logprobs) * logprobs * speaks[:, None]).sum())
        gradients.append(read_gradients(adapters))
    got, expected = gradients
    assert {cell for (cell, _, _), tensor in got.items() if tensor.any()} == {0, 1, 2} - silent
    assert largest_difference(got, expected) <= 1e-10 * largest(expected)


# Widths that fill panels, and queries, keys and values that share one.
@pytest.mark.parametrize("d_head", [16, 32, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_whose_weights_lie_in_panels_alone_is_the_same_model(dtype, d_head):
    model = build_model(LlamaForCausalLM, LlamaConfig, dtype, head_dim=d_head, intermediate_size=80)
    weights = {name: layer.weight.clone() for name, layer in find_linears(model).items()}
    ids = torch.arange(20)[None]
    expected, num_weights, (network, adapters) = model(ids).logits, count_weights(model), pack_compiled(model)
    backpropagate(network, walk_tree(network))
    keep_panels(model, compile_kernels(dtype))
    kept = find_linears(model)
    assert all(isinstance(layer, PanelLinear) for layer in kept.values())
    for name, weight in weights.items():
        assert torch.equal(kept[name].weight, weight)
    assert torch.equal(model(ids).logits, expected)
    assert count_weights(model) == num_weights
    again, same = pack_compiled(model)
    backpropagate(again, walk_tree(again))
    assert torch.equal(same.gradient, adapters.gradient)


def test_what_lies_in_panels_leaves_no_page_of_the_models_file_in_memory(tmp_path):
    build_model(LlamaForCausalLM, LlamaConfig, torch.float32, hidden_size=512).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(each.isfinite().all() for each in model.parameters()), "each is read once"
    before = count_resident_kib(tmp_path)
    keep_panels(model, compile_kernels(torch.float32))
    # The norms, the embeddings and the head stay.
    assert count_resident_kib(tmp_path) < 0.2 * before


def count_resident_kib(folder):
    """What this process holds in memory of a folder's files, KiB."""
    lines, inside, total = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines(), False, 0
    for line in lines:
        if "-" in line.split()[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_the_backward_pass_of_silent_cells_is_not_computed(monkeypatch):
    model = build_model(LlamaForCausalLM, LlamaConfig)
    network, adapters = pack_compiled(model)
    logprobs = walk_tree(network)
    # What a pass along them would read: it would spread to their adapters.
    network._layers[0].kept["mixed"].fill_(float("nan"))
    network.backpropagate((0.0 * logprobs).sum())
    assert not adapters.gradient.any()


class Threaded:
    """Kernels that share their work among threads; torch, which has the same threads, goes on with one."""

    def __init__(self, library, num_threads):
        self._library, self._num_threads = library, num_threads

    def __getattr__(self, name):
        return getattr(self._library, name)

    def _call(self, function, *arguments):
        before = self._library.omp_get_max_threads()
        self._library.omp_set_num_threads(self._num_threads)
        try:
            function(*arguments)
        finally:
            self._library.omp_set_num_threads(before)

    def forward(self, *arguments):
        self._call(self._library.forward, *arguments)

    def backward(self, *arguments):
        self._call(self._library.backward, *arguments)


MANY = [TrainConfig(seed=seed, lora_rank=4) for seed in range(12)]
LONG = [[2 + (cell + i) % 30 for i in range(30 + cell)] for cell in range(12)]


def test_threads_change_no_bit_of_a_cells_gradient():
    model = build_model(LlamaForCausalLM, LlamaConfig, torch.float32)
    library = load_kernels(torch.float32)

    def compute_gradient(kernels):
        adapters = AdapterPack(llama.list_siblings(model), MANY, dtype=torch.float32)
        network = CompiledDecoderNetwork(model, LONG, np.arange(len(LONG)), move_adapters(adapters), kernels)
        network.backpropagate(network.prefill().pick(np.arange(12), np.full(12, 11)).sum())
        return adapters.gradient

    expected = compute_gradient(library)
    # Threads meet by chance, so they get more than one.
    for _ in range(30):
        assert torch.equal(compute_gradient(Threaded(library, 3)), expected)


ROOTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, 23], [30], [31, 32, 33]]
OF_ROOTS = np.array([0, 0, 0, 1, 1])
"""Three prompts of one cell and two of another."""

NODES = [
    ([(0, 3), (0, 4), (2, 3), (3, 9), (3, 8), (4, 7)], [0, 0, 0, 1, 1, 1]),
    ([(0, 10), (2, 11), (2, 12), (5, 13)], [0, 0, 0, 1]),
]
"""Levels of their trees: (place of the parent in the level before, token) and the cell; a root has no answer."""


def walk_roots(network):
    """Log-probabilities after every root and every node, with gradient."""
    logprobs = [read_logprobs(network.prefill(), 40)]
    for nodes, cell in NODES:
        parents, tokens = np.array(nodes).T
        logprobs.append(read_logprobs(network.extend(tokens, parents, np.array(cell)), 40))
    return torch.cat(logprobs)


def list_root_paths():
    """The cell and the whole text of every root and node, in the order of `walk_roots`."""
    listed = before = list(zip(OF_ROOTS.tolist(), ROOTS, strict=True))
    for nodes, cells in NODES:
        before = [(cell, [*before[parent][1], token]) for (parent, token), cell in zip(nodes, cells, strict=True)]
        listed = listed + before
    return listed


def pack_to_recompute(model, cells=CELLS, prompts=PROMPTS, root_cell=ROOT_CELL):
    return pack_by_autograd(model, cells, prompts, root_cell, RecomputedActivations(model))


@pytest.mark.parametrize("build", [pack_compiled, pack_by_autograd, pack_to_recompute])
def test_a_cell_of_several_roots_has_one_adapter_and_a_prompt_for_each(monkeypatch, build):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(Qwen3ForCausalLM, Qwen3Config)
    network, adapters = build(model, CELLS[:2], ROOTS, OF_ROOTS)
    got, rows, leaves = walk_roots(network), [], {}
    policies = [merge(model, adapters, cell) for cell in range(2)]
    for cell, text in list_root_paths():
        logits = policies[cell][0](input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        rows.append(torch.log_softmax(logits, dim=-1))
    expected = torch.stack(rows)
    assert float((got - expected).detach().abs().max()) <= 1e-9
    backpropagate(network, got)
    (draw_weights(expected) * expected).sum().backward()
    for _, mine in policies:
        leaves |= {key: leaf.grad for key, leaf in mine.items()}
    assert largest_difference(read_gradients(adapters), leaves) <= 1e-9 * largest(leaves)


@pytest.mark.parametrize("build", [pack_compiled, pack_by_autograd])
def test_a_cell_that_stays_keeps_all_of_its_roots(monkeypatch, build):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(LlamaForCausalLM, LlamaConfig)
    network, adapters = build(model, CELLS[:2], ROOTS, OF_ROOTS)
    before = read_logprobs(network.prefill(), 40).detach()
    adapters.keep(np.array([0]))
    network.plant(ROOTS[:3], OF_ROOTS[:3], 1)
    torch.testing.assert_close(read_logprobs(network.prefill(), 40).detach(), before[:3], rtol=0, atol=1e-12)


OTHERS = [
    pytest.param(GemmaForCausalLM, GemmaConfig, {}, id="gemma"),
    pytest.param(Gemma2ForCausalLM, Gemma2Config, {"sliding_window": 64}, id="gemma2"),
    pytest.param(MistralForCausalLM, MistralConfig, {"sliding_window": None}, id="mistral"),
    pytest.param(Phi3ForCausalLM, Phi3Config, {"sliding_window": None}, id="phi3-fused"),
    pytest.param(Qwen2ForCausalLM, Qwen2Config, {}, id="qwen2-biased"),
]


@pytest.mark.parametrize(("kind", "config", "more"), OTHERS)
def test_any_other_architecture_agrees_with_plain_passes(kind, config, more):
    model = build_model(kind, config, **more)
    network, adapters = build_network(model, PROMPTS, CELLS)
    assert isinstance(network, AutogradNetwork)
    move_adapters(adapters)
    got = walk_tree(network)
    expected, gradients = compute_plainly(model, adapters)
    # Norms in float32 inside a float64 model: both paths round alike, but not in every last bit.
    assert float((got.detach() - expected).abs().max()) <= 1e-5
    backpropagate(network, got)
    assert largest_difference(read_gradients(adapters), gradients) <= 1e-5 * largest(gradients)


def test_between_walks_the_base_model_is_the_plain_model():
    model = build_model(MistralForCausalLM, MistralConfig, sliding_window=None)
    ids = torch.tensor([PROMPTS[0]])
    before = model(input_ids=ids).logits
    network, _ = pack_by_autograd(model)
    backpropagate(network, walk_tree(network))
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("build", [pack_compiled, pack_by_autograd])
def test_cells_that_stay_are_not_touched_by_those_that_leave(monkeypatch, build):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(LlamaForCausalLM, LlamaConfig)
    network, adapters = build(model)
    before = read_logprobs(network.prefill(), 40).detach()
    # Without the longest prompt and the largest rank, padding goes too.
    adapters.keep(np.array([1]))
    network.plant(PROMPTS[1:2], np.zeros(1, dtype=np.int64), 1)
    assert adapters.rank == 4
    torch.testing.assert_close(read_logprobs(network.prefill(), 40).detach(), before[[1]], rtol=0, atol=1e-12)


def test_what_the_decoder_does_not_know_is_left_to_autograd():
    assert llama.is_supported(build_model(LlamaForCausalLM, LlamaConfig))
    for kind, config, more in [
        (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
        (LlamaForCausalLM, LlamaConfig, {"hidden_act": "gelu"}),
        (Qwen3ForCausalLM, Qwen3Config, {"use_sliding_window": True, "sliding_window": 4}),
        (MistralForCausalLM, MistralConfig, {}),
    ]:
        assert not llama.is_supported(build_model(kind, config, **more))
