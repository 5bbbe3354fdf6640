"""Products with base weights: by panels of floats, and by the tiles of AMX, here or emulated."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from amx import open_tiled_kernels

from memrl.policy import kernels

GUARD = -77.0
"""What stands before and after every array that a product writes."""


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    with open_tiled_kernels(tmp_path_factory.mktemp("amx")) as library:
        yield library


@pytest.fixture(params=["panels", "tiles"])
def library(request):
    if request.param == "tiles":
        return request.getfixturevalue("tiled")
    path = kernels.compile_kernels(kernels.KINDS[torch.bfloat16])
    assert path is not None, "the tests need a C compiler"
    return kernels.open_kernels(path)


def draw(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def multiply(library, a, weights):
    """a times weights, which are bfloat16; nothing beside the arrays may be written."""
    (m, k), n = a.shape, weights.shape[1]
    depth = library.panel_depth()
    arrays = {"rounded": m * (-(-k // depth) * depth), "out": m * n}
    kept = {name: torch.full((size + 128,), GUARD) for name, size in arrays.items()}
    inside = {name: kept[name][64:-64] for name in kept}
    inside["rounded"].fill_(torch.nan)  # nothing of what was there before may count
    library.multiply_base(
        m, n, k, a.contiguous(), inside["rounded"], kernels.cut_panels(weights.float(), library), inside["out"]
    )
    for array in kept.values():
        assert (array[:64] == GUARD).all()
        assert (array[-64:] == GUARD).all()
    return inside["out"].reshape(m, n)


def bound_error(a, weights):
    """The exact product of the rounded numbers, and how far sums of floats in any order may be from it."""
    exact, sizes = (f(a.bfloat16().double()) @ f(weights.double()) for f in (torch.clone, torch.abs))
    return exact, (a.shape[1] + 2) * 2.0**-24 * sizes


SHAPES = [
    *((1, 1, 1), (3, 5, 2), (16, 16, 32), (17, 33, 31), (32, 32, 64), (33, 47, 50), (31, 64, 33)),
    *((95, 15, 100), (70, 40, 7), (48, 63, 96), (6, 130, 256), (96, 512, 96)),
]
"""Rows, columns and depth, whole tiles and parts of them."""


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_product_of_any_shape_is_that_of_the_rounded_numbers(library, m, n, k):
    a, weights = draw(m, k, 1), draw(k, n, 2).bfloat16()
    exact, bound = bound_error(a, weights)
    got = multiply(library, a, weights)
    assert bool(((got.double() - exact).abs() <= bound).all())
    # Without rounding it would be another: the bound is tight enough to tell.
    unrounded = a.double() @ weights.double()
    assert k == 1 or bool(((got.double() - unrounded).abs() > bound).any())


def test_rows_do_not_depend_on_the_rows_beside_them(library):
    a, weights = draw(75, 100, 3), draw(100, 50, 4).bfloat16()
    whole = multiply(library, a, weights)
    for first, last in [(0, 1), (5, 21), (30, 66), (74, 75)]:
        assert torch.equal(multiply(library, a[first:last], weights), whole[first:last])


def test_numbers_are_rounded_to_the_nearest_and_to_even(library):
    halfway = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-8 - 2.0**-20])
    extremes = torch.tensor([0.0, 3.4028235e38, -3.4028235e38, torch.inf, -torch.inf, torch.nan, 1e-37, 3.3e38])
    x = torch.cat([halfway, extremes, draw(1, 4000, 5)[0]])[:, None]
    torch.testing.assert_close(
        multiply(library, x, torch.ones(1, 1).bfloat16()), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True
    )


def test_threads_do_not_disturb_each_other(library):
    arguments = [(draw(m, k, m), draw(k, n, n).bfloat16()) for m, n, k in SHAPES]
    alone = [multiply(library, *pair) for pair in arguments]
    with ThreadPoolExecutor(max_workers=4) as threads:
        together = list(threads.map(lambda pair: multiply(library, *pair), arguments * 3))
    for got, expected in zip(together, alone * 3, strict=True):
        assert torch.equal(got, expected)


def test_tiles_are_asked_for_where_the_processor_has_them():
    described = Path("/proc/cpuinfo")
    flags = set(described.read_text().split()) if described.exists() else set()
    assert kernels.request_tiles() == ({"amx_tile", "amx_bf16"} <= flags)
