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


def test_both_are_what_bitsandbytes_gave():
    """Version 0.50 on a CPU: numbers of NF4 values and the two scales, steps and the scales of rows."""
    nf4 = [
        7, 8, 6, 9, 5, 9, 6, 7, 8, 5, 10, 4, 10, 5, 7, 8, 4, 11, 3, 11, 5, 8, 9, 4, 12, 2, 12, 4, 8, 9, 3, 13, 2, 13, 3,
        9, 9, 3, 13, 1, 14, 2, 10, 8, 3, 14, 1, 14, 2, 11, 8, 3, 14, 0, 15, 1, 11, 7, 3, 14, 0, 15, 1, 12, 7, 4, 13, 1,
        14, 1, 11, 6, 4, 13, 1, 14, 1, 12, 6, 4, 13, 0, 15, 1, 13, 5, 4, 14, 0, 15,
    ]  # fmt: skip
    steps = [
        0, 35, -72, 101, -114, 102, -65, 8, 61, -127, 82, -90, 80, -52, 11, 37, -83, 115, -127, 114, -60, 17, 33, -80,
        114, -127, 116, -81, 28, 34, -64, 94, -108, 100, -72, 29, 22, -72, 109, -127, 105, -78, 35, 17, -67, 107, -127,
        123, -95, 47, 11, -63, 104, -127, 126, -99, 53, 5, -64, 113, -113, 114, -93, 53, -2, -52, 96, -123, 127, -106,
        58, -8, -46, 91, -121, 127, -109, 69, -15, -43, 80, -109, 117, -103, 69, -20, -34, 82, -115, 127,
    ]  # fmt: skip
    scales = [0.357421875, 0.7626953125, 0.9853515625, 1.4248046875, 1.6376953125, 1.8447265625, 2.30078125,
              2.537109375, 2.998046875]  # fmt: skip
    weight = (torch.arange(90, dtype=torch.float32).mul(2.7).sin() * torch.linspace(0.2, 3, 90)).view(9, 10)
    scale = torch.tensor([2.0615365505218506, 2.9984798431396484]).repeat_interleave(64)[:90]
    want = (torch.tensor(NF4)[torch.tensor(nf4)] * scale).view(9, 10)
    torch.testing.assert_close(rounded_4bit(weight), want, rtol=1e-6, atol=0)
    want = torch.tensor(steps).view(9, 10) * (torch.tensor(scales).view(9, 1) / 127)
    torch.testing.assert_close(rounded_8bit(weight), want, rtol=1e-6, atol=0)


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
