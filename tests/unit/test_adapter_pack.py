"""Adapters side by side in flat tensors, against one torch.optim.Adam a cell and against plain matrices."""

import chz
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from memrl.config import TrainConfig
from memrl.policy.adapter_pack import AdapterPack, find_linears

SHAPES = {"one": {"q": (6, 4), "k": (6, 2)}, "two": {"o": (4, 6)}}
CELLS = [
    TrainConfig(seed=1, lora_rank=2, learning_rate=1e-2),
    TrainConfig(seed=2, lora_rank=5, learning_rate=3e-3, adam_beta1=0.7, adam_beta2=0.9, adam_epsilon=1e-3),
    TrainConfig(seed=3, lora_rank=1, learning_rate=1e-1, lora_alpha=8.0),
]


def build(cells=CELLS, dtype=torch.float64):
    groups = [{name: nn.Linear(*shape) for name, shape in group.items()} for group in SHAPES.values()]
    return AdapterPack(groups, cells, dtype=dtype)


def read_flat(pack, flat, cell):
    """One cell's part of a flat tensor as {layer: (A, B transposed)} at its true rank."""
    rank = pack.ranks[cell]
    return {s.name: (pack.view_A(flat, s)[cell, :rank], pack.view_B(flat, s)[cell, :rank]) for s in pack.slots.values()}


def add_gradient(pack, cell, gradient):
    for name, parts in read_flat(pack, pack.gradient, cell).items():
        for view, part in zip(parts, gradient[name], strict=True):
            view += part


def draw_gradient(config, generator):
    sizes = {name: shape for group in SHAPES.values() for name, shape in group.items()}
    return {
        name: tuple(torch.from_numpy(generator.normal(size=(config.lora_rank, width))) for width in shape)
        for name, shape in sizes.items()
    }


def start_adam(pack, cell, config):
    """torch.optim.Adam on copies of one cell's matrices."""
    own = {
        name: tuple(part.clone() for part in parts) for name, parts in read_flat(pack, pack.parameters, cell).items()
    }
    flat = [part for parts in own.values() for part in parts]
    betas = (config.adam_beta1, config.adam_beta2)
    return own, torch.optim.Adam(flat, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)


def test_B_starts_at_zero_and_A_uniform_within_one_over_the_root_of_the_inputs_width():
    wide = AdapterPack([{"layer": nn.Linear(400, 3)}], [TrainConfig(lora_rank=8)], dtype=torch.float64)
    A, B = read_flat(wide, wide.parameters, 0)["layer"]
    assert not B.any()
    assert stats.kstest(A.flatten().numpy(), stats.uniform(-1 / 20, 2 / 20).cdf).pvalue > 0.01


def test_a_cell_starts_the_same_whoever_its_neighbors_are():
    pack = build()
    for cell, config in enumerate(CELLS):
        alone = build([config])
        for name, parts in read_flat(alone, alone.parameters, 0).items():
            torch.testing.assert_close(parts, read_flat(pack, pack.parameters, cell)[name], rtol=0, atol=0)
    other = build([chz.replace(CELLS[0], seed=7)])
    assert not torch.equal(other.parameters[0], build([CELLS[0]]).parameters[0])


@pytest.mark.parametrize("kernels", ["compiled", "torch"])
def test_every_cell_moves_as_an_adam_of_its_own_while_the_pack_shrinks(monkeypatch, kernels):
    if kernels == "torch":
        monkeypatch.setattr("memrl.policy.optimizer.load_kernels", lambda dtype: None)
    pack, live = build(), [0, 1, 2]
    alone = [start_adam(pack, cell, config) for cell, config in enumerate(CELLS)]
    generator = np.random.default_rng(0)
    for update in range(30):
        for place, cell in enumerate(live):
            gradient = draw_gradient(CELLS[cell], generator)
            add_gradient(pack, place, gradient)
            own, optimizer = alone[cell]
            for name, parts in own.items():
                for part, grad in zip(parts, gradient[name], strict=True):
                    part.grad = grad
            optimizer.step()
        pack.update()
        assert not pack.gradient.any()
        for place, cell in enumerate(live):
            for name, parts in read_flat(pack, pack.parameters, place).items():
                torch.testing.assert_close(parts, alone[cell][0][name], rtol=0, atol=1e-13)
        if update in (9, 19):
            # The widest leaves first, so the rest are laid out anew, narrower.
            gone = max(range(len(live)), key=lambda place: CELLS[live[place]].lora_rank)
            pack.keep(np.array([place for place in range(len(live)) if place != gone]))
            live.pop(gone)
    assert (live, pack.rank) == ([2], 1)


def test_scale_is_alpha_over_rank_and_follows_its_cell():
    pack = build()
    assert pack.scale.flatten().tolist() == [16.0, 6.4, 8.0]
    pack.keep(np.array([0, 2]))
    assert pack.scale.flatten().tolist() == [16.0, 8.0]


def test_gradient_norms_are_of_each_cell():
    pack, generator = build(), np.random.default_rng(1)
    gradients = [draw_gradient(config, generator) for config in CELLS]
    for cell, gradient in enumerate(gradients):
        add_gradient(pack, cell, gradient)
    expected = [sum(float((part**2).sum()) for parts in g.values() for part in parts) ** 0.5 for g in gradients]
    np.testing.assert_allclose(pack.gradient_norms(), expected)


def draw_adapter(config, seed=5):
    """A trained adapter under PEFT's names."""
    generator, tensors = np.random.default_rng(seed), {}
    for name, (A, B) in draw_gradient(config, generator).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.T.contiguous()
    return tensors


def test_an_adapter_comes_back_as_it_was_imported_and_neighbors_keep_theirs():
    pack = build()
    before, tensors = pack.parameters.clone(), draw_adapter(CELLS[0])
    pack.import_peft(0, tensors)
    exported = pack.export_peft(0)
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(pack.parameters[1:], before[1:], rtol=0, atol=0)


def test_an_imported_adapter_is_trained_by_a_fresh_adam():
    pack, fresh, generator = build(), build(), np.random.default_rng(2)
    for _ in range(5):
        add_gradient(pack, 1, draw_gradient(CELLS[1], generator))
        pack.update()
    gradient = draw_gradient(CELLS[1], generator)
    for one in (pack, fresh):
        one.import_peft(1, draw_adapter(CELLS[1]))
        add_gradient(one, 1, gradient)
        one.update()
    torch.testing.assert_close(pack.parameters[1], fresh.parameters[1], rtol=0, atol=0)


@pytest.mark.parametrize("cell", range(3))
def test_an_exported_adapter_stays_as_it_is_while_the_pack_trains_on(cell):
    pack, generator = build(), np.random.default_rng(4)
    exported = pack.export_peft(cell)
    before = {name: tensor.clone() for name, tensor in exported.items()}
    add_gradient(pack, cell, draw_gradient(CELLS[cell], generator))
    pack.update()
    assert all(tensor.is_contiguous() for tensor in exported.values())
    assert all(torch.equal(exported[name], tensor) for name, tensor in before.items())


def drop_a_layer(tensors):
    del tensors["base_model.model.o.lora_A.weight"]


def add_a_layer(tensors):
    tensors["base_model.model.v.lora_A.weight"] = torch.zeros(2, 6)


def change_the_rank(tensors):
    tensors["base_model.model.k.lora_A.weight"] = torch.zeros(3, 6)


@pytest.mark.parametrize("spoil", [drop_a_layer, add_a_layer, change_the_rank])
def test_an_adapter_of_another_shape_is_refused(spoil):
    tensors = draw_adapter(CELLS[0])
    spoil(tensors)
    with pytest.raises(ValueError, match=r"adapter must have shape .* at base_model\.model\.\w\.lora_A\.weight, got"):
        build().import_peft(0, tensors)


def test_a_restored_pack_goes_on_as_if_it_had_never_stopped():
    pack, generator = build(), np.random.default_rng(3)
    gradients = [draw_gradient(CELLS[2], generator) for _ in range(6)]
    for update, gradient in enumerate(gradients):
        if update == 3:
            state = {name: array.copy() for name, array in pack.arrays().items()}
        add_gradient(pack, 2, gradient)
        pack.update()
    restored = build()
    restored.restore(state)
    for gradient in gradients[3:]:
        add_gradient(restored, 2, gradient)
        restored.update()
    torch.testing.assert_close(restored.parameters, pack.parameters, rtol=0, atol=0)


def test_layers_that_read_the_same_input_share_one_matrix_A():
    pack = build()
    A = pack.view_A(pack.parameters, pack.slots["q"], num_layers=2)
    for cell, config in enumerate(CELLS):
        own = read_flat(pack, pack.parameters, cell)
        rank = config.lora_rank
        torch.testing.assert_close(A[cell, :rank], own["q"][0], rtol=0, atol=0)
        torch.testing.assert_close(A[cell, pack.rank : pack.rank + rank], own["k"][0], rtol=0, atol=0)


def test_adapters_go_on_every_linear_layer_but_the_head():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
            self.head = nn.Linear(3, 9)

        def get_output_embeddings(self):
            return self.head

    assert list(find_linears(Model())) == ["body.0", "body.2"]
