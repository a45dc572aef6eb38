# Axes: B batch, L codes of a vector, C scalars of a code, K codes, D width
from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.item_tokenizers.quantizers.scalar import ScalarGrid, ScalarQuantizer

PUBLISHED = (8, 8, 8, 6, 5)
LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


def slow_code(z, levels):
    """From the definition, in float64: the integers of one row of scalars, and their code."""
    integers, code, basis = [], 0, 1
    for value, n in zip(z, levels, strict=True):
        h, o = (n - 1) * (1 - 1e-3) / 2, 0.5 if n % 2 == 0 else 0.0
        integers.append(round(h * math.tanh(value + math.tan(o / h)) - o))
        code += (integers[-1] + n // 2) * basis
        basis *= n
    return integers, code


@settings(max_examples=40, deadline=None)
@given(LEVELS, st.integers(0, 1000))
def test_codes_equal_the_definition(levels, seed):
    z = np.random.default_rng(seed).normal(scale=1.5, size=(30, len(levels))).astype(np.float32)
    grid = ScalarGrid(levels)
    codes = grid.codes(grid.bound(torch.from_numpy(z)))
    expected = [slow_code(row.tolist(), levels) for row in z]
    assert codes.tolist() == [code for _, code in expected]
    half = np.array([n // 2 for n in levels])
    np.testing.assert_allclose(grid.points(codes).numpy() * half, [integers for integers, _ in expected], atol=1e-6)


@pytest.mark.parametrize("n", range(2, 17))
def test_every_level_is_reached_and_no_other(n):
    z = torch.linspace(-20, 20, 20_001)[:, None]
    grid = ScalarGrid((n,))
    bounded = grid.bound(z)
    assert sorted(set(bounded.round().int()[:, 0].tolist())) == list(range(-(n // 2), math.ceil(n / 2)))
    assert sorted(set(grid.codes(bounded).tolist())) == list(range(n))


@pytest.mark.parametrize("n", range(2, 17))
def test_zero_lies_in_the_middle_of_its_cell(n):
    assert abs(ScalarGrid((n,)).bound(torch.zeros(1, 1)).item()) < (0.05 if n < 4 else 0.004)


def test_all_published_codes_come_back():
    grid = ScalarGrid(PUBLISHED)
    codes = torch.arange(15_360)
    points = grid.points(codes)
    half = grid.levels_C // 2
    assert grid.codes(points * half).tolist() == codes.tolist()
    assert len(np.unique(points.numpy(), axis=0)) == 15_360
    # the first scalar runs fastest
    expected = [row[::-1] for row in product(*[range(-(n // 2), math.ceil(n / 2)) for n in PUBLISHED[::-1]])]
    np.testing.assert_array_equal((points * half).numpy(), expected)
    torch.testing.assert_close(grid.points_KC, points, rtol=0, atol=0)


def quantizer(width=10, n_tokens=4, levels=(5, 4, 3), dim=6, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ScalarQuantizer(levels, n_tokens, width, dim)


def batch(n, width, seed=1):
    return 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "n_tokens"), [(8, 4), (10, 4), (5, 4), (7, 1)])
def test_pieces_are_contiguous_and_cover_the_vector(width, n_tokens):
    module = quantizer(width, n_tokens)
    x = batch(20, width)
    found = module(x)
    size = -(-width // n_tokens)
    weight, bias = (p.detach().double().numpy() for p in (module.project_in.weight, module.project_in.bias))
    for b in range(20):
        for token, part in enumerate(np.array_split(x[b].double().numpy(), n_tokens)):
            z = weight @ np.pad(part, (0, size - len(part))) + bias
            assert found.codes_BL[b, token] == slow_code(z.tolist(), (5, 4, 3))[1]


def test_lookup_repeats_what_forward_quantized():
    module = quantizer().eval()
    found = module(batch(50, 10))
    assert found.quantized_BLH.shape == (50, 4, 6)
    torch.testing.assert_close(module.lookup(found.codes_BL), found.quantized_BLH, rtol=0, atol=0)
    assert module.lookup(torch.arange(60)).shape == (60, 6)


def test_equal_codes_are_quantized_alike():
    module = quantizer(levels=(3, 2))
    found = module(batch(300, 10))
    flat = torch.cat([found.codes_BL.flatten()[:, None], found.quantized_BLH.flatten(0, 1)], dim=1).detach()
    assert len(flat.unique(dim=0)) == len(flat[:, 0].unique()) <= 6


def test_gradient_is_that_of_the_tanh():
    grid_levels = (8, 5, 2)
    module = quantizer(width=3, n_tokens=1, levels=grid_levels, dim=3)
    with torch.no_grad():
        for layer in (module.project_in, module.project_out):
            layer.weight.copy_(torch.eye(3))
            layer.bias.zero_()
    z = batch(9, 3).requires_grad_(True)
    module(z).quantized_BLH.sum().backward()
    for c, n in enumerate(grid_levels):
        h, o = (n - 1) * (1 - 1e-3) / 2, 0.5 if n % 2 == 0 else 0.0
        slope = h * (1 - torch.tanh(z.detach()[:, c] + math.tan(o / h)) ** 2) / (n // 2)
        torch.testing.assert_close(z.grad[:, c], slope)
    assert (z.grad.abs() > 0).any()


def test_half_precision_around_it_changes_no_code():
    module = quantizer(width=40, levels=PUBLISHED, dim=8).eval()
    x = batch(200, 40)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x)
        again = module.lookup(found.codes_BL)
    assert found.codes_BL.tolist() == expected.codes_BL.tolist()
    assert found.codes_BL.max() > 2048  # more than half precision could count
    torch.testing.assert_close(again, expected.quantized_BLH, rtol=0, atol=0)
    halved = module.to(torch.bfloat16)(x.bfloat16())  # other weights, so other codes; still whole numbers in range
    assert halved.quantized_BLH.dtype == torch.float32
    assert 0 <= halved.codes_BL.min() <= halved.codes_BL.max() < 15_360
