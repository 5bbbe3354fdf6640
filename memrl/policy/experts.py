"""The experts of a mixture with room for one adapter a cell and expert.

Each token goes to a few experts, so a layer's work is a list of assignments, one for each token and expert. Sorted by
expert and then by cell, those of an expert lie side by side, so that a base product runs once per expert over all
cells; those of an expert and cell lie side by side too, and share one pair of A and B. Such pairs are padded to the
width of others of about their size, and a batched product takes all of these at once. An expert without tokens costs
nothing and gets no gradient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from memrl.policy.adapter_pack import AdapterPack, ExpertProjection

_PROJECTIONS = ("gate_up_proj", "down_proj")
"""The parameters that adapters go on, in the order in which an expert uses them."""


def find_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of experts that adapters go on, by path: those that transformers runs by its common kernels.

    Their weights are `gate_up_proj` and `down_proj`, each one parameter of three dimensions; what else they do lies in
    their `_apply_gate`, their biases and a flag that says whether the weights are transposed.

    Source: transformers 5.19, integrations/moe.py, use_experts_implementation.
    """
    return {name: m for name, m in model.named_modules() if name.endswith(".experts") and _is_common(m)}


def _is_common(module: nn.Module) -> bool:
    weights = [name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]
    # PEFT names the first by the second, in the order in which the module has them.
    return weights == list(_PROJECTIONS) and hasattr(module, "_apply_gate") and bool(getattr(module, "has_gate", False))


def describe_projections(experts: Mapping[str, nn.Module]) -> dict[str, dict[str, ExpertProjection]]:
    """The projections of some modules of experts: by the module's path, and then by their own."""
    return {path: {f"{path}.{leaf}": _describe(m, leaf) for leaf in _PROJECTIONS} for path, m in experts.items()}


def _describe(module: Any, leaf: str) -> ExpertProjection:
    weight = getattr(module, leaf)
    routed = getattr(module.config, "num_experts_per_tok", None)
    # Where the model does not say, a token may go to all.
    return ExpertProjection(weight, module.is_transposed, routed if isinstance(routed, int) else weight.shape[0])


def leave_out_routers(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """The linear layers that choose no experts: vLLM takes no adapters on those that do.

    A router is called one, lies beside experts that share a parameter, and has one output for each.
    """
    blocks = [(name.partition(".experts.")[0], len(weight)) for name, weight in _name_shared_weights(model)]
    return {
        name: linear
        for name, linear in linears.items()
        if not any(linear.out_features == n and _is_called_router(name, block) for block, n in blocks)
    }


def _is_called_router(name: str, block: str) -> bool:
    child = name.removeprefix(f"{block}.").partition(".")[0]
    return name.startswith(f"{block}.") and ("router" in child or "gate" in child)


def list_unadapted_experts(model: nn.Module, experts: Iterable[str]) -> list[str]:
    """Parameters that experts share and that have no adapters, by path: of modules other than the given ones."""
    adapted = {f"{path}.{leaf}" for path in experts for leaf in _PROJECTIONS}
    return [name for name, _ in _name_shared_weights(model) if name not in adapted]


def _name_shared_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.dim() == 3 and ".experts." in name]


@dataclass(frozen=True)
class Bucket:
    """Pairs of an expert and a cell, whose assignments are of numbers that differ by less than a factor of two.

    Attributes:
        cell: the cell of each pair, (pairs,).
        expert: its expert, (pairs,).
        width: assignments of the largest pair, to which the others are padded.
        rows: the pairs' assignments, by their place in the sorted list, (assignments,).
        places: where each of them lies in the padded pairs, flattened, (assignments,).
    """

    cell: Tensor
    expert: Tensor
    width: int
    rows: Tensor
    places: Tensor

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The pairs' rows of (assignments, width of x) as zero-padded (pairs, width, width of x)."""
        padded = x.new_zeros((len(self.cell) * self.width, x.shape[1]), dtype=dtype)
        padded.index_add_(0, self.places, x.index_select(0, self.rows).to(dtype))
        return padded.unflatten(0, (len(self.cell), self.width))

    def scatter(self, padded: Tensor, x: Tensor) -> None:
        """Adds what `gather` would give as `padded` to the rows of x."""
        x.index_add_(0, self.rows, padded.flatten(0, 1).index_select(0, self.places).to(x.dtype))


class Routing:
    """Which token goes where: the assignments of a layer, sorted by expert and then by cell.

    Args:
        experts: the experts of each token, (tokens, experts per token); tokens lie cell by cell, as many for each.
        num_experts: experts of the layer.
        num_cells: cells of the pack.

    Attributes:
        order: the assignments, by token and then by choice, in their sorted order; (assignments,).
        sizes: assignments of each expert and cell, (experts, cells).
    """

    def __init__(self, experts: Tensor, num_experts: int, num_cells: int) -> None:
        cell = torch.arange(num_cells, device=experts.device).repeat_interleave(experts.numel() // num_cells)
        pair = experts.flatten() * num_cells + cell
        self.order = torch.argsort(pair, stable=True)
        self.sizes = torch.bincount(pair, minlength=num_experts * num_cells).unflatten(0, (num_experts, num_cells))

    @cached_property
    def ends(self) -> Tensor:
        """Where each expert's assignments end, int32 (experts,)."""
        return self.sizes.sum(1).cumsum(0).to(torch.int32)

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """Expert, first assignment and end of each expert that has assignments."""
        ends = self.ends.tolist()
        return [(e, a, b) for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if a < b]

    @cached_property
    def buckets(self) -> list[Bucket]:
        """All pairs that have assignments; padding is less than half of any bucket."""
        sizes = self.sizes.flatten()
        magnitude = sizes.double().log2().ceil()
        return [self._collect((magnitude == value).nonzero()[:, 0]) for value in magnitude[sizes > 0].unique().tolist()]

    def _collect(self, pairs: Tensor) -> Bucket:
        sizes = self.sizes.flatten()
        starts, size = (sizes.cumsum(0) - sizes)[pairs], sizes[pairs]
        width = int(size.max())
        offset = torch.arange(width, device=pairs.device)
        is_real = offset < size[:, None]
        rows, places = (starts[:, None] + offset)[is_real], is_real.flatten().nonzero()[:, 0]
        num_cells = self.sizes.shape[1]
        return Bucket(pairs % num_cells, pairs // num_cells, width, rows, places)


def multiply_by_experts(x: Tensor, weight: Tensor, routing: Routing) -> Tensor:
    """Each expert's product with its own rows: (assignments, d_in) sorted by expert, by (experts, d_in, d_out)."""
    if _has_kernel(x, weight):
        return nn.functional.grouped_mm(x, weight, offs=routing.ends)
    out = x.new_empty((len(x), weight.shape[2]))
    for expert, start, end in routing.spans:
        torch.mm(x[start:end], weight[expert], out=out[start:end])
    return out


def _has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether torch has one kernel for all experts, which wants rows of whole 16 bytes."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or any(width % 8 for width in weight.shape[1:]):
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


class PackedProjection:
    """A projection of all experts and the adapters of every cell and expert on it.

    Args:
        name: the parameter's path in the model.
        projection: the base weights.
        bias: (experts, d_out), where the experts have one.
    """

    A: Tensor
    B: Tensor
    grad_A: Tensor
    grad_B: Tensor
    scale: Tensor

    def __init__(self, name: str, projection: ExpertProjection, bias: Tensor | None) -> None:
        self._name = name
        weight = projection.weight.detach()
        self.weight = weight if projection.is_transposed else weight.transpose(1, 2)
        self.bias = bias

    def attach(self, adapters: AdapterPack) -> None:
        """Takes views of the pack's adapters and of their gradient."""
        slot = adapters.slots[self._name]
        self.A, self.B = (view(adapters.parameters, slot) for view in (adapters.view_blocks_A, adapters.view_blocks_B))
        self.grad_A, self.grad_B = (
            view(adapters.gradient, slot) for view in (adapters.view_blocks_A, adapters.view_blocks_B)
        )
        self.scale = adapters.scale


class _Adapted(torch.autograd.Function):
    """base(x) + scale · B A x for assignments; backward adds the adapters' gradient to the pack's own in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tracked: Tensor, layer: PackedProjection, routing: Routing) -> Tensor:
        out = multiply_by_experts(x, layer.weight, routing)
        if layer.bias is not None:
            out += layer.bias.repeat_interleave(routing.sizes.sum(1), dim=0)
        lows, wide = [], out.to(layer.A.dtype)
        for bucket in routing.buckets:
            at = bucket.cell, bucket.expert
            low = torch.bmm(bucket.gather(x, wide.dtype), layer.A[at].mT).mul_(layer.scale[bucket.cell])
            bucket.scatter(torch.bmm(low, layer.B[at]), wide)
            lows.append(low)
        ctx.save_for_backward(x, *lows)
        ctx.layer, ctx.routing = layer, routing
        return wide.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, *lows), layer, routing = ctx.saved_tensors, ctx.layer, ctx.routing
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply_by_experts(grad_out, layer.weight.mT, routing).to(layer.A.dtype)
        for bucket, low in zip(routing.buckets, lows, strict=True):
            at = bucket.cell, bucket.expert
            wide = bucket.gather(grad_out, low.dtype)
            grad_low = torch.bmm(wide, layer.B[at].mT).mul_(layer.scale[bucket.cell])
            layer.grad_B.index_put_(at, torch.bmm(low.mT, wide), accumulate=True)
            layer.grad_A.index_put_(at, torch.bmm(grad_low.mT, bucket.gather(x, low.dtype)), accumulate=True)
            if grad_x is not None:
                bucket.scatter(torch.bmm(grad_low, layer.A[at]), grad_x)
        return None if grad_x is None else grad_x.to(x.dtype), None, None, None


class PackedExperts(nn.Module):
    """A frozen module of experts with room for one adapter a cell and expert, on both of their projections.

    Args:
        path: the module's path in the model.
        base: the module, one of those that `find_experts` finds.
    """

    def __init__(self, path: str, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base.requires_grad_(False)
        described = describe_projections({path: base})[path]
        biases = {leaf: getattr(base, f"{leaf}_bias", None) for leaf in _PROJECTIONS}
        self._gate_up, self._down = (
            PackedProjection(name, projection, biases[name.rpartition(".")[2]])
            for name, projection in described.items()
        )
        self._tracked = torch.zeros((), requires_grad=True)

    def attach(self, adapters: AdapterPack) -> None:
        """Takes views of the pack's adapters and of their gradient."""
        for projection in (self._gate_up, self._down):
            projection.attach(adapters)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Applies experts and adapters.

        Args:
            hidden_states: (tokens, width), cell by cell, as many for each.
            top_k_index: the experts of each token, (tokens, experts per token).
            top_k_weights: what each counts for, same shape.

        Returns:
            the experts' weighted sum, (tokens, width).
        """
        num_cells, num_experts = self._gate_up.A.shape[:2]
        routing = Routing(top_k_index, num_experts, num_cells)
        chosen = top_k_index.shape[1]
        by_assignment = hidden_states.index_select(0, routing.order // chosen)
        gate_up = _Adapted.apply(by_assignment, self._tracked, self._gate_up, routing)
        down = _Adapted.apply(self.base._apply_gate(gate_up), self._tracked, self._down, routing)
        weighted = down * top_k_weights.flatten().index_select(0, routing.order)[:, None]
        by_token = weighted.index_select(0, torch.argsort(routing.order)).unflatten(0, (-1, chosen))
        return by_token.sum(1).to(hidden_states.dtype)
