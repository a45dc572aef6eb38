"""Weights rounded as bitsandbytes rounds them: against a loop, and against the package where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec.errors import ArtifactError
from genrec.models.rounding import NF4, round_layers, rounded_4bit, rounded_8bit

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 40))


def drawn(shape, seed):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=random)
    weight[seed % shape[0]] *= seed % 3  # a row of zeros now and then
    return weight


@given(SHAPES, st.integers(0, 99))
def test_four_bits_are_the_nearest_value_of_a_block(shape, seed):
    weight = drawn(shape, seed)
    flat = weight.flatten().tolist()
    want = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        scale = max(map(abs, block))
        want += [min(NF4, key=lambda v: abs(v * scale - x)) * scale for x in block]
    got = rounded_4bit(weight)
    # of two values equally far away, either
    np.testing.assert_allclose((got - weight).abs().flatten(), np.abs(np.array(want) - flat), atol=1e-6)
    assert torch.equal(got == 0, torch.tensor(want).view(shape) == 0)
    assert rounded_4bit(weight.bfloat16()).dtype == torch.bfloat16


@given(SHAPES, st.integers(0, 99))
def test_eight_bits_are_steps_of_a_row(shape, seed):
    weight = drawn(shape, seed)
    got = rounded_8bit(weight)
    for row, rounded in zip(weight.half().double(), got.double(), strict=True):
        step = float(row.abs().max()) / 127
        if not step:
            assert not rounded.any()
            continue
        n = (rounded / step).round()
        assert n.abs().max() == 127 and torch.allclose(rounded, n * step, rtol=1e-5, atol=0)
        assert ((rounded - row).abs() <= step / 2 * (1 + 1e-3)).all()


def test_both_are_those_of_bitsandbytes():
    package = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    values = torch.tensor(NF4)
    for shape in ((64, 64), (30, 50), (7, 9), (128, 96)):
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            packed, state = package.quantize_4bit(weight, quant_type="nf4")
            # unpacked here: on a CPU, dequantize_4bit of version 0.50 mixes up rows that are no multiple of 64 long
            number = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: weight.numel()].long()
            scale = state.absmax.repeat_interleave(64)[: weight.numel()]
            assert torch.equal((values[number] * scale).view(shape).to(dtype), rounded_4bit(weight))
        steps, scale, _ = package.int8_vectorwise_quant(weight.half())
        assert torch.allclose(steps.float() * (scale.view(-1, 1) / 127), rounded_8bit(weight.float()), rtol=1e-6)


def test_a_layer_that_is_gone_is_named():
    with pytest.raises(ArtifactError, match=r"decoder\.gone"):
        round_layers(torch.nn.Linear(2, 2), "4bit", ["decoder.gone"])
