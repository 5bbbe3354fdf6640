"""The base weights of a compiled decoder, which lie in memory once: in panels, as the kernels read them."""

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memrl.policy import llama


class PanelLinear(nn.Linear):
    """A frozen linear layer whose weights are columns of panels, put together anew whenever they are asked for.

    Args:
        layer: its shape and name are taken over, its weights are not.
        panels: of all layers that read the same input, (panels, d_in, columns).
        start: its first column.
    """

    def __init__(self, layer: nn.Linear, panels: Tensor, start: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None
        self.panels, self._start = panels, start

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_out, d_in), a copy."""
        columns = self.panels.shape[2]
        first, end = self._start // columns, self._start + self.out_features
        spanned = self.panels[first : -(-end // columns)].transpose(1, 2).flatten(0, 1)
        return spanned[self._start - first * columns :][: self.out_features]


def find_panels(siblings: Sequence[nn.Linear], library: ctypes.CDLL) -> Tensor:
    """The base weights of layers that read the same input, as multiply_base in products.h takes them."""
    if isinstance(siblings[0], PanelLinear):
        return siblings[0].panels
    matrix = torch.cat([layer.weight.detach() for layer in siblings]).T
    columns = library.panel_columns()
    filled = nn.functional.pad(matrix, (0, -matrix.shape[1] % columns))
    return filled.unflatten(1, (-1, columns)).transpose(0, 1).contiguous()


def keep_panels(model: PreTrainedModel, library: ctypes.CDLL) -> None:
    """Lets go of a frozen model's own copy of the weights that lie in panels; what it computes stays the same.

    Args:
        model: a base model for which `llama.is_supported` holds.
        library: `load_kernels` of its dtype.
    """
    for siblings in llama.list_siblings(model):
        panels, start = find_panels(list(siblings.values()), library), 0
        for path, layer in siblings.items():
            model.set_submodule(path, PanelLinear(layer, panels, start))
            start += layer.out_features
            _let_go(layer.weight)


def count_weights(model: PreTrainedModel) -> int:
    """The model's own weights, wherever they lie."""
    panels = (m for m in model.modules() if isinstance(m, PanelLinear))
    return model.num_parameters() + sum(m.in_features * m.out_features for m in panels)


def _let_go(weight: Tensor) -> None:
    """Takes a tensor's pages out of memory where they are those of a file, which stays open for other tensors of it."""
    page = mmap.PAGESIZE
    start, end = -(-weight.data_ptr() // page) * page, (weight.data_ptr() + weight.nbytes) // page * page
    if start < end and _is_of_file(start, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _is_of_file(start: int, end: int) -> bool:
    """Whether the addresses lie in a file that is mapped, as Linux tells it."""
    report = Path("/proc/self/maps")
    if not report.exists():
        return False
    for line in report.read_text(encoding="utf-8").splitlines():
        span, _, _, _, inode, *_ = line.split()
        first, last = (int(address, 16) for address in span.split("-"))
        if first <= start and end <= last:
            return inode != "0"
    return False
