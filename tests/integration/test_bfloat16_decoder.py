"""The compiled decoder over bfloat16 bases: a function of its own, the same by floats and by AMX's tiles."""

import copy

import numpy as np
import pytest
import torch
from amx import open_tiled_kernels
from naive_policy import keep_norms_in_dtype
from test_decoder import (
    CELLS,
    LEVELS,
    LONG,
    MANY,
    PROMPTS,
    SUPPORTED,
    Threaded,
    build_model,
    draw_weights,
    largest,
    largest_difference,
    move_adapters,
    read_gradients,
    walk_tree,
)
from transformers import LlamaConfig, LlamaForCausalLM

from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.policy import decoder, kernels
from memrl.policy.adapter_pack import AdapterPack
from memrl.policy.compiled_decoder import CompiledDecoderNetwork
from memrl.policy.packed import build_network


def round_to_bfloat16(x):
    return x.float().bfloat16().to(x.dtype)


class _Rounded(torch.autograd.Function):
    """A product of rounded inputs with weights, whose gradient meets the transpose rounded too."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return round_to_bfloat16(x) @ weight.T

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return round_to_bfloat16(grad) @ weight, None


class _Adapted(torch.nn.Module):
    """A base layer in bfloat16 with one cell's adapter, whose matrices are leaves."""

    def __init__(self, weight, A, B, scale):
        super().__init__()
        self.base, self.A, self.B, self.scale = weight.detach(), A.requires_grad_(), B.requires_grad_(), scale

    def forward(self, x):
        return _Rounded.apply(x, self.base) + self.scale * (x @ self.A.T) @ self.B


def open_double_kernels():
    """The same rounding, everything else in float64: rounding makes steps, on which float32 falls by chance."""
    path = kernels.compile_kernels(("-DREAL=double", "-DBASE_BFLOAT16"))
    assert path is not None, "the tests need a C compiler"
    return kernels.open_kernels(path)


def pack(model, library, real, cells=CELLS, prompts=PROMPTS):
    adapters = AdapterPack(decoder.group_linears(model), cells, dtype=real)
    return CompiledDecoderNetwork(model, prompts, move_adapters(adapters), library), adapters


def lay_out_tree(cell):
    """A cell's prompt and the nodes of LEVELS after it as one sequence: tokens, positions, and which sees which."""
    tokens, parents = list(PROMPTS[cell]), list(range(-1, len(PROMPTS[cell]) - 1))
    before = [len(tokens) - 1]
    for level in LEVELS:
        mine = [(token, before[parent]) for owner, token, parent in level if owner == cell]
        before = list(range(len(tokens), len(tokens) + len(mine)))
        tokens += [token for token, _ in mine]
        parents += [parent for _, parent in mine]
    visible = torch.eye(len(tokens), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            visible[row] |= visible[parent]
    return torch.tensor([tokens]), visible.sum(1)[None] - 1, visible[None, None]


def compute_by_autograd(model, adapters):
    """Log-probabilities by the model's own modules in float64, in the order of `walk_tree`, and the adapters' leaves.

    A cell is one sequence, since the gradient of what answers share is rounded once, after it is summed.
    """
    rows, leaves = {}, {}
    for cell, rank in enumerate(adapters.ranks):
        policy = copy.deepcopy(model).double()
        for slot in adapters.slots.values():
            A, B = (v(adapters.parameters, slot)[cell, :rank].clone() for v in (adapters.view_A, adapters.view_B))
            layer = _Adapted(policy.get_submodule(slot.name).weight, A, B, float(adapters.scale[cell]))
            policy.set_submodule(slot.name, layer)
            leaves[cell, slot.name, "A"], leaves[cell, slot.name, "B"] = layer.A, layer.B
        ids, positions, visible = lay_out_tree(cell)
        logits = policy(input_ids=ids, position_ids=positions, attention_mask=visible, use_cache=False).logits[0]
        rows[cell] = iter(logits[len(PROMPTS[cell]) - 1 :])
    order = [*range(len(adapters.ranks)), *(cell for level in LEVELS for cell, _, _ in level)]
    return torch.log_softmax(torch.stack([next(rows[cell]) for cell in order]), dim=-1), leaves


def backpropagate(logprobs, by):
    """A fixed weighted sum of the log-probabilities."""
    by((draw_weights(logprobs) * logprobs).sum())


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_values_and_gradients_are_those_of_the_rounded_function(monkeypatch, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, torch.bfloat16, **more)
    network, adapters = pack(model, open_double_kernels(), torch.float64)
    got = walk_tree(network)
    expected, leaves = compute_by_autograd(model, adapters)
    assert float((got - expected).detach().abs().max()) <= 1e-10
    backpropagate(got, network.backpropagate)
    backpropagate(expected, torch.Tensor.backward)
    gradients = {key: leaf.grad for key, leaf in leaves.items()}
    assert largest_difference(read_gradients(adapters), gradients) <= 1e-10 * largest(gradients)


def run(model, library, real=torch.float32):
    """The log-probabilities of the walk, and the gradients of a sum of them."""
    network, adapters = pack(model, library, real)
    logprobs = walk_tree(network)
    backpropagate(logprobs, network.backpropagate)
    return logprobs.detach(), read_gradients(adapters)


def is_near(got, expected):
    """Whether two runs differ by no more than a few numbers that fall on the other side of a rounding step."""
    logprobs = float((got[0] - expected[0]).abs().max())
    return logprobs <= 0.02 and largest_difference(got[1], expected[1]) <= 0.02 * largest(expected[1])


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_in_float32_the_rounded_function_is_nearly_the_same_and_another_than_without(monkeypatch, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, torch.bfloat16, **more)
    exact = run(model, open_double_kernels(), torch.float64)
    assert is_near(run(model, kernels.load_kernels(torch.bfloat16)), exact)
    assert not is_near(run(model.double(), kernels.load_kernels(torch.float64), torch.float64), exact)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    with open_tiled_kernels(tmp_path_factory.mktemp("amx")) as library:
        yield library


@pytest.mark.parametrize(("kind", "config", "more"), SUPPORTED)
def test_tiles_compute_what_panels_of_floats_do(monkeypatch, tiled, kind, config, more):
    keep_norms_in_dtype(monkeypatch)
    model = build_model(kind, config, torch.bfloat16, **more)
    assert is_near(run(model, tiled), run(model, open_double_kernels(), torch.float64))


def feed_many(library, cells):
    """Logits and gradients of some of MANY, each with two answers of a token."""
    model = build_model(LlamaForCausalLM, LlamaConfig, torch.bfloat16)
    network, adapters = pack(model, library, torch.float32, MANY, LONG)
    for part in (network, adapters):
        part.keep(np.array(cells))
    cell = np.repeat(np.arange(len(cells)), 2)
    logits = [network.prefill(), network.extend(np.tile([7, 9], len(cells)), cell, cell)]
    # One token of each row: the gradient that enters the network is a row of the head, however torch sums.
    network.backpropagate(torch.cat(logits)[:, 11].sum())
    return torch.cat([logits[0], logits[1][::2], logits[1][1::2]], dim=1).detach(), adapters.gradient


@pytest.mark.parametrize("name", ["panels", "tiles"])
def test_neither_neighbors_nor_threads_change_a_cell_by_a_bit(request, name):
    library = request.getfixturevalue("tiled") if name == "tiles" else kernels.load_kernels(torch.bfloat16)
    logits, gradient = feed_many(library, list(range(12)))
    assert float(gradient.abs().amax(dim=1).min()) > 1e-3
    assert torch.equal(feed_many(Threaded(library, 3), list(range(12)))[1], gradient)
    for cells in ([0], [3, 7, 8], [11]):
        alone = feed_many(library, cells)
        assert torch.equal(alone[1], gradient[cells])
        torch.testing.assert_close(alone[0], logits[cells], rtol=1e-5, atol=1e-5)


def test_a_bfloat16_base_runs_in_the_compiled_decoder():
    model = build_model(LlamaForCausalLM, LlamaConfig, torch.bfloat16)
    network, adapters = build_network(model, PROMPTS, CELLS)
    assert isinstance(network, CompiledDecoderNetwork)
    assert adapters.parameters.dtype == torch.float32


def test_cells_learn_their_secrets_over_a_bfloat16_base():
    shared = {"learning_rate": 3e-3, "dtype": "bfloat16"}
    cells = [
        TrainConfig(N=8, seed=1, **shared),
        TrainConfig(N=64, algorithm="sft", batch_size=1, seed=2, **shared),
        TrainConfig(N=16, env_type="multi_step", reward_type="per_bit", group_size=8, seed=3, **shared),
    ]
    pack = Pack(cells)
    while not pack.finished:
        pack.update()
    rows, _ = pack.drain()
    assert {row["cell_id"]: row["status"] for row in rows} == {cell.cell_id: "memorized" for cell in cells}
