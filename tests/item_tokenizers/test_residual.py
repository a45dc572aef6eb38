# Axes: B batch, L levels, K codes, D width
from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.item_tokenizers.quantizers.residual import ResidualQuantizer, nearest_codeword


@pytest.fixture
def quantizer():
    module = ResidualQuantizer(n_levels=3, level_size=10, dim=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for level, book in enumerate(module.codebooks):
            book.copy_(torch.randn(10, 4, generator=generator) / 2**level)
    return module


def batch(n=32, requires_grad=False):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)


def test_codes_equal_a_loop_and_words_add_up(quantizer):
    z = batch(100)
    found = quantizer(z)
    total = np.zeros((100, 4))
    for b in range(100):
        left = z[b].numpy().astype(np.float64)
        for level, book in enumerate(quantizer.codebooks):
            words = book.detach().numpy()
            code = int(((left - words) ** 2).sum(axis=1).argmin())
            assert found.codes_BL[b, level] == code
            left = left - words[code]
            total[b] += words[code]
    np.testing.assert_allclose(found.quantized_BD.detach().numpy(), total, atol=1e-6)
    np.testing.assert_allclose(quantizer.lookup(found.codes_BL).detach().numpy(), total, atol=1e-6)


def test_losses_are_sums_over_dimensions_and_means_over_rows(quantizer):
    z = batch()
    found = quantizer(z)
    left = z
    for level in range(3):
        left = left - quantizer.codebooks[level][found.codes_BL[:, level]]
        expected = (left**2).sum(dim=1).mean().item()
        assert found.codebook_L[level].item() == pytest.approx(expected, rel=1e-5)
        assert found.commitment_L[level].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_commitment_pulls_the_encoder_at_every_level(quantizer, level):
    z = batch(requires_grad=True)
    found = quantizer(z)
    found.commitment_L[level].backward()
    residual = z.detach().clone()
    for before in range(level + 1):
        residual -= quantizer.codebooks[before].detach()[found.codes_BL[:, before]]
    torch.testing.assert_close(z.grad, 2 * residual / len(z))  # nothing is lost on the way to deeper levels
    assert z.grad.norm() > 0.01
    assert all(book.grad is None for book in quantizer.codebooks)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_codebook_loss_moves_chosen_rows_of_its_own_codebook(quantizer, level):
    z = batch(5, requires_grad=True)
    found = quantizer(z)
    found.codebook_L[level].backward()
    assert z.grad is None
    for other, book in enumerate(quantizer.codebooks):
        if other != level:
            assert not book.grad.any()
    moved = quantizer.codebooks[level].grad.abs().sum(dim=1) > 0
    chosen = torch.zeros(10, dtype=torch.bool)
    chosen[found.codes_BL[:, level]] = True
    assert moved.tolist() == chosen.tolist()
    assert not chosen.all()


def test_reconstruction_goes_straight_through(quantizer):
    z = batch(requires_grad=True)
    weights = torch.arange(4.0)
    (quantizer(z).quantized_BD * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights.expand_as(z))  # derivative 1, not once per level
    assert all(book.grad is None for book in quantizer.codebooks)


def test_equally_near_codewords_take_the_first():
    book = torch.tensor([[1.0], [-1.0], [1.0]])
    assert nearest_codeword(torch.tensor([[0.0], [2.0], [-3.0]]), book).tolist() == [0, 0, 1]
