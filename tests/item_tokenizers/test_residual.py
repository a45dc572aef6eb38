# Axes: B batch, L levels, K codes, D width
from __future__ import annotations

import numpy as np
import pytest
import torch

from genrec.errors import ConfigError
from genrec.item_tokenizers.quantizers.residual import ResidualOptions, ResidualQuantizer, nearest_codeword, rotate
from genrec.item_tokenizers.quantizers.sinkhorn import uniform_codes


@pytest.fixture
def quantizer():
    return make()


def make(**options):
    module = ResidualQuantizer(n_levels=3, level_size=10, dim=4, options=ResidualOptions(**options))
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


def rotation(start, end):
    """The matrix that turns the direction of ``start`` to that of ``end`` in their plane, and nothing else."""
    u, v = start / np.linalg.norm(start), end / np.linalg.norm(end)
    cosine = u @ v
    w = v - cosine * u
    sine = np.linalg.norm(w)
    w = w / sine
    turn = sine * (np.outer(w, u) - np.outer(u, w)) + (cosine - 1) * (np.outer(u, u) + np.outer(w, w))
    return np.eye(len(u)) + turn


def test_rotation_trick_turns_the_gradient_as_the_definition_says():
    quantizer = make(gradient="rotation").double()
    z = batch(50).double().requires_grad_(True)
    found = quantizer(z)
    torch.testing.assert_close(found.quantized_BD, quantizer.lookup(found.codes_BL))
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found.quantized_BD * weights).sum().backward()
    before, after = z.detach().numpy(), found.quantized_BD.detach().numpy()
    for b in range(50):
        turn = rotation(before[b], after[b])
        scale = np.linalg.norm(after[b]) / np.linalg.norm(before[b])
        np.testing.assert_allclose(scale * turn @ before[b], after[b], atol=1e-10)
        np.testing.assert_allclose(z.grad[b].numpy(), scale * turn.T @ weights[b].numpy(), atol=1e-9)
    assert all(book.grad is None for book in quantizer.codebooks)


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    quantizer = make(gradient="rotation")
    z = batch(50, requires_grad=True)
    q = quantizer(z).quantized_BD
    weights = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    (q * weights).sum().backward()
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(z.grad, z.detach()), cosine(weights, q.detach()), atol=1e-5, rtol=0)
    assert not torch.allclose(z.grad, weights, atol=0.1)  # straight-through would be that


def test_rotation_of_vectors_without_direction():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
    out = rotate(z, target)
    out.sum().backward()
    assert z.grad[:2].tolist() == [[1.0, 1.0], [1.0, 1.0]]  # no direction: straight through
    torch.testing.assert_close(out[2:].detach(), target[2:])
    torch.testing.assert_close(z.grad[2:], torch.tensor([[-2.0, 2.0], [1.0, 1.0]]))  # opposite: mirrored; equal: none


def test_sinkhorn_assigns_the_last_level_while_training():
    quantizer, plain = make(sinkhorn_epsilon=0.003), make()
    z = batch(40)
    found, nearest = quantizer(z), plain(z)
    assert torch.equal(found.codes_BL[:, :2], nearest.codes_BL[:, :2])
    left = z - sum(quantizer.codebooks[level].detach()[found.codes_BL[:, level]] for level in range(2))
    book = quantizer.codebooks[2].detach()
    expected = uniform_codes(torch.cdist(left.double(), book.double()) ** 2)
    assert torch.equal(found.codes_BL[:, 2], expected)
    assert torch.bincount(found.codes_BL[:, 2]).max() <= 8 < torch.bincount(nearest.codes_BL[:, 2]).max()
    gap = (left - book[expected]).square().sum(dim=1).mean()  # the losses are those of the assigned codeword
    torch.testing.assert_close(found.codebook_L[2].detach(), gap)
    torch.testing.assert_close(found.quantized_BD.detach(), quantizer.lookup(found.codes_BL).detach())


def test_sinkhorn_is_for_training_batches_of_a_row_per_code_at_least():
    quantizer, plain = make(sinkhorn_epsilon=0.003), make()
    assert torch.equal(quantizer(batch(9)).codes_BL, plain(batch(9)).codes_BL)
    assert torch.equal(quantizer.eval()(batch(40)).codes_BL, plain(batch(40)).codes_BL)


def test_a_shared_codebook_is_one_parameter_moved_by_every_level():
    shared, own = make(shared=True), make()
    assert len(list(shared.parameters())) == 1
    assert len(shared.codebooks) == 3
    with torch.no_grad():
        for book in own.codebooks:
            book.copy_(shared.codebooks[0])
    z = batch()
    found, expected = shared(z), own(z)
    assert torch.equal(found.codes_BL, expected.codes_BL)
    found.codebook_L.sum().backward()
    expected.codebook_L.sum().backward()
    torch.testing.assert_close(shared.codebooks[0].grad, sum(book.grad for book in own.codebooks))
    back = make(shared=True)
    back.load_state_dict(shared.state_dict())
    assert all(torch.equal(book, shared.codebooks[0]) for book in back.codebooks)


@pytest.mark.parametrize(
    "wrong", [{"gradient": "gumbel"}, {"sinkhorn_epsilon": 0.001}, {"sinkhorn_epsilon": -1}, {"sinkhorn_iterations": 0}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ResidualOptions(**wrong)
