"""Many LoRA adapters over one base model: one matmul serves the base, one batched matmul the adapters.

The policy of cell k is base(x) + scale[k] · B[k] A[k] x on every linear layer (LoRA Without Regret: all layers, the
MLP above all). Ranks differ by zero-padding: where a column of B is zero, the row of A gets no gradient, and where a
row of A is zero, the column of B gets none, so padding stays zero without a mask. The experts of a mixture have one A
and one B each, all of the cell's rank.

Source: Schulman and Thinking Machines Lab, LoRA Without Regret, 2025, doi 10.64434/tml.20250929.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from memrl.config import TrainConfig
from memrl.policy.optimizer import PackedAdam

_ADAPTER_STREAM = 0xADA97E
"""Keeps the adapters' random numbers apart from every other stream of the same cell."""

_NAMES_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that PEFT reads as those of experts in `target_modules` of a model that has experts, whatever layer they mean.

Source: peft 0.21, utils/transformers_weight_conversion.py, _MOE_TARGET_MODULE_MAPPING.
"""


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that adapters go on, by path: every one but the output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def check_linears(model: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
    """Refuses a model without layers that adapters go on, such as GPT-2's of another kind.

    Raises:
        ValueError: `linears`, what is left of `find_linears`, is empty.
    """
    if not linears:
        kind = type(model).__name__
        raise ValueError(f"model must have linear layers (torch.nn.Linear) beside its head, got {kind}")


def describe_adapter(config: TrainConfig, layers: Iterable[str]) -> dict[str, object]:
    """A cell's adapter_config.json, as PEFT and vLLM read it.

    Args:
        config: the cell.
        layers: paths of the layers that its adapter is on; experts' end in `.experts` and the parameter's name.
    """
    names = list(layers)
    experts = {f"experts.{name.rpartition('.')[2]}" for name in names if _is_of_experts(name)}
    linears = {name.rpartition(".")[2] for name in names if not _is_of_experts(name)}
    mistaken = linears & _NAMES_OF_EXPERTS if experts else set()
    parameters = experts | {f"{name}.weight" for name in mistaken}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.model,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(linears - mistaken),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "inference_mode": True,
    }


def _is_of_experts(name: str) -> bool:
    return name.rpartition(".")[0].endswith(".experts")


@dataclass(frozen=True, eq=False)
class ExpertProjection:
    """One linear map of every expert of a layer, as a single parameter.

    Attributes:
        weight: (experts, d_out, d_in), or (experts, d_in, d_out) where transposed.
        is_transposed: which of the two.
        experts_per_token: how many experts a token goes to.
    """

    weight: Tensor
    is_transposed: bool
    experts_per_token: int

    @property
    def num_experts(self) -> int:
        """How many experts share the parameter."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Width of an expert's input."""
        return self.weight.shape[1 if self.is_transposed else 2]

    @property
    def out_features(self) -> int:
        """Width of an expert's output."""
        return self.weight.shape[2 if self.is_transposed else 1]


@dataclass(frozen=True)
class Slot:
    """Where one layer's adapter lies in the flat tensors.

    Attributes:
        name: the layer's path in the model; of experts, the parameter's.
        d_in: width of its input.
        d_out: width of its output.
        start_A: offset of A, (experts, rank, d_in) row-major; a linear layer's is (rank, d_in).
        start_B: offset of B transposed, (experts, rank, d_out) row-major; a linear layer's is (rank, d_out).
        num_experts: of a linear layer, unset.
    """

    name: str
    d_in: int
    d_out: int
    start_A: int
    start_B: int
    num_experts: int | None = None

    @property
    def num_blocks(self) -> int:
        """How many pairs of A and B a cell has here."""
        return 1 if self.num_experts is None else self.num_experts

    @property
    def peft_name(self) -> str:
        """The layer's name in PEFT's files, where the experts' second parameter wraps their first."""
        if self.num_experts is None:
            return self.name
        path, _, leaf = self.name.rpartition(".")
        return f"{path}.base_layer" if leaf == "gate_up_proj" else path


class AdapterPack:
    """The adapters of K cells with their optimizer, in flat tensors of shape (cells, parameters).

    Layers that read the same input lie side by side, so that their A's are one matrix.

    Args:
        siblings: the linear layers, and experts, by path; those that read the same input are siblings.
        configs: one per cell: rank, alpha, learning rate, Adam's constants, and the stream of A's start.
        dtype: of the adapters.
        device: where they live.

    Attributes:
        parameters: (cells, parameters), every A and B, zero-padded to the largest rank.
        gradient: same shape; backward passes add to it.
        optimizer: what updates the parameters.
        scale: alpha / rank of each cell, (cells, 1, 1).
        rank: the largest rank of the pack, which all are padded to.
    """

    def __init__(
        self,
        siblings: Iterable[Mapping[str, nn.Linear | ExpertProjection]],
        configs: Sequence[TrainConfig],
        *,
        dtype: torch.dtype,
        device: str = "cpu",
    ) -> None:
        self._siblings = [{name: _measure(layer) for name, layer in named.items()} for named in siblings]
        self._ranks = np.array([c.lora_rank for c in configs])
        self._alphas = np.array([c.lora_alpha for c in configs])
        self._lay_out(int(self._ranks.max()))
        self.parameters = torch.zeros((len(configs), self._num_parameters), dtype=dtype, device=device)
        self.optimizer = PackedAdam(configs, self.parameters)
        self._initialize(configs)
        self._renew()

    @property
    def num_cells(self) -> int:
        """Cells whose adapters are in the pack."""
        return len(self._ranks)

    @property
    def ranks(self) -> np.ndarray:
        """The true rank of each cell, int64 (cells,)."""
        return self._ranks

    def _lay_out(self, rank: int) -> None:
        self.rank = rank
        self.slots: dict[str, Slot] = {}
        offset = 0
        for named in self._siblings:
            starts_A = offset + np.cumsum([0, *(rank * (n or 1) * d_in for d_in, _, n in named.values())])
            starts_B = starts_A[-1] + np.cumsum([0, *(rank * (n or 1) * d_out for _, d_out, n in named.values())])
            for (name, (d_in, d_out, n)), a, b in zip(named.items(), starts_A, starts_B, strict=False):
                self.slots[name] = Slot(name, d_in, d_out, int(a), int(b), n)
            offset = int(starts_B[-1])
        self._num_parameters = offset

    def _initialize(self, configs: Sequence[TrainConfig]) -> None:
        """A ~ U(±1/sqrt(d_in)), B = 0; every cell draws from a stream of its own."""
        for cell, config in enumerate(configs):
            stream = np.random.default_rng(np.random.SeedSequence([_ADAPTER_STREAM, int(config.cell_id, 16)]))
            for slot in self.slots.values():
                bound = 1.0 / math.sqrt(slot.d_in)
                A = stream.uniform(-bound, bound, size=(slot.num_blocks, config.lora_rank, slot.d_in))
                self.view_blocks_A(self.parameters, slot)[cell, :, : config.lora_rank] = torch.from_numpy(A)

    def _renew(self) -> None:
        self.gradient = torch.zeros_like(self.parameters)
        self.scale = torch.from_numpy(self._alphas / self._ranks).to(self.parameters)[:, None, None]

    def view_A(self, flat: Tensor, first: Slot, num_layers: int = 1) -> Tensor:
        """A of `num_layers` layers that read the same input, (cells, num_layers · rank, d_in), as a view of `flat`."""
        rows = num_layers * self.rank
        return flat[:, first.start_A : first.start_A + rows * first.d_in].unflatten(1, (rows, first.d_in))

    def view_B(self, flat: Tensor, slot: Slot) -> Tensor:
        """B of a layer, transposed, as (cells, rank, d_out) of a flat tensor."""
        return flat[:, slot.start_B : slot.start_B + self.rank * slot.d_out].unflatten(1, (self.rank, slot.d_out))

    def view_blocks_A(self, flat: Tensor, slot: Slot) -> Tensor:
        """A of each expert, or of a linear layer as the only one: (cells, experts, rank, d_in), a view of `flat`."""
        return self._view_blocks(flat, slot.start_A, (slot.num_blocks, self.rank, slot.d_in))

    def view_blocks_B(self, flat: Tensor, slot: Slot) -> Tensor:
        """B of each expert transposed, as (cells, experts, rank, d_out) of a flat tensor."""
        return self._view_blocks(flat, slot.start_B, (slot.num_blocks, self.rank, slot.d_out))

    @staticmethod
    def _view_blocks(flat: Tensor, start: int, shape: tuple[int, int, int]) -> Tensor:
        return flat[:, start : start + math.prod(shape)].unflatten(1, shape)

    def count_parameters(self, cell: int) -> int:
        """Numbers of one cell's A and B of every layer, at its true rank."""
        return int(self._ranks[cell]) * sum(s.num_blocks * (s.d_in + s.d_out) for s in self.slots.values())

    def gradient_norms(self) -> np.ndarray:
        """The l2 norm of each cell's gradient: float64 (cells,)."""
        return torch.linalg.vector_norm(self.gradient, dim=1).double().cpu().numpy()

    def update(self, ended: Sequence[int] = ()) -> None:
        """Lets the optimizer use up the gradient.

        Args:
            ended: cells whose adapters stay as they were scored, where the optimizer's moments alone would move them.
        """
        rows = list(ended)
        scored = self.parameters[rows] if rows else None
        self.optimizer.update(self.parameters, self.gradient)
        if scored is not None:
            self.parameters[rows] = scored

    def keep(self, cells: np.ndarray) -> None:
        """Shrinks the pack to the given cells (indices, ascending), and to their largest rank."""
        index = torch.from_numpy(cells).to(self.parameters.device)
        flats = {name: flat[index] for name, flat in self._flats().items()}
        self._ranks, self._alphas = self._ranks[cells], self._alphas[cells]
        if len(cells) and int(self._ranks.max()) < self.rank:
            flats = self._narrow(flats, int(self._ranks.max()))
        self.parameters = flats.pop("parameters")
        self.optimizer.keep(cells, flats)
        self._renew()

    def _flats(self) -> dict[str, Tensor]:
        """All tensors that are laid out by slots, and outlive an update."""
        return {"parameters": self.parameters, **self.optimizer.moments}

    def _narrow(self, flats: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
        """Cuts padded ranks off, and lays the slots out anew."""
        wide = {
            name: [
                (self.view_blocks_A(flat, slot)[:, :, :rank], self.view_blocks_B(flat, slot)[:, :, :rank])
                for slot in self.slots.values()
            ]
            for name, flat in flats.items()
        }
        self._lay_out(rank)
        narrow = {}
        for name, views in wide.items():
            like = flats[name]
            narrow[name] = flat = torch.empty((len(like), self._num_parameters), dtype=like.dtype, device=like.device)
            for slot, (A, B) in zip(self.slots.values(), views, strict=True):
                self.view_blocks_A(flat, slot).copy_(A)
                self.view_blocks_B(flat, slot).copy_(B)
        return narrow

    def export_peft(self, cell: int) -> dict[str, Tensor]:
        """One cell's adapter under PEFT's names, sliced to its true rank: A (rank, d_in), B (d_out, rank).

        Those of experts are A (experts · rank, d_in), expert by expert, and B (d_out, rank · experts), where the
        experts are the inner index.

        Source: peft 0.21, tuners/lora/layer.py, ParamWrapper.get_delta_weight.
        """
        rank, tensors = int(self._ranks[cell]), {}
        for slot in self.slots.values():
            A, B = self.view_blocks_A(self.parameters, slot)[cell], self.view_blocks_B(self.parameters, slot)[cell]
            assert not A[:, rank:].any(), "padding must stay zero"
            assert not B[:, rank:].any(), "padding must stay zero"
            name_A, name_B = _name_tensors(slot)
            # Of rank 1, B's transpose is contiguous as it is: only a clone is a copy for sure.
            tensors[name_A] = A[:, :rank].clone().flatten(0, 1)
            tensors[name_B] = B[:, :rank].permute(2, 1, 0).clone(memory_format=torch.contiguous_format).flatten(1)
        return tensors

    def import_peft(self, cell: int, tensors: dict[str, Tensor]) -> None:
        """Sets one cell's adapter from PEFT's tensors; its optimizer starts anew.

        Raises:
            ValueError: a layer is missing, unknown, or of another rank or width.
        """
        rank = int(self._ranks[cell])
        expected: dict[str, tuple[int, int]] = {}
        for slot in self.slots.values():
            name_A, name_B = _name_tensors(slot)
            expected[name_A] = (slot.num_blocks * rank, slot.d_in)
            expected[name_B] = (slot.d_out, rank * slot.num_blocks)
        got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if got != expected:
            different = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
            first = different[0]
            raise ValueError(f"adapter must have shape {expected.get(first)} at {first}, got {got.get(first)}")
        for slot in self.slots.values():
            A, B = self.view_blocks_A(self.parameters, slot)[cell], self.view_blocks_B(self.parameters, slot)[cell]
            name_A, name_B = _name_tensors(slot)
            A[:, :rank] = tensors[name_A].unflatten(0, (slot.num_blocks, rank))
            B[:, :rank] = tensors[name_B].unflatten(1, (rank, slot.num_blocks)).permute(2, 1, 0)
        self.optimizer.reset(cell)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that training changes, by name, one row per cell: parameters, moments and numbers of updates."""
        flats = {name: flat.cpu().numpy() for name, flat in self._flats().items()}
        return {**flats, "num_updates": self.optimizer.num_updates}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes up what `arrays` gave, for the same cells."""
        for name, flat in self._flats().items():
            flat.copy_(torch.from_numpy(arrays[name]))
        self.optimizer.num_updates[:] = arrays["num_updates"]


def _measure(layer: nn.Linear | ExpertProjection) -> tuple[int, int, int | None]:
    """Width of the input, width of the output, and the number of experts, which a linear layer has not."""
    return layer.in_features, layer.out_features, layer.num_experts if isinstance(layer, ExpertProjection) else None


def _name_tensors(slot: Slot) -> tuple[str, str]:
    """PEFT's names of A and B."""
    prefix = f"base_model.model.{slot.peft_name}"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
