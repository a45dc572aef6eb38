"""The losses against their definitions, written out item by item."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError
from genrec.training.preference_losses import (
    advantages,
    clipped_objective,
    dpo_loss,
    grpo_loss,
    k3,
    rank_rewards,
)
from genrec.training.preference_settings import Alarms, DpoSettings, GrpoSettings

seeds = st.integers(0, 2**20)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 6), st.sampled_from([0.1, 1.0, 3.0]))
def test_dpo_is_its_formula(seed, n_rows, n_negatives, beta):
    random = np.random.default_rng(seed)
    target, negatives = random.normal(size=n_rows) * 3, random.normal(size=(n_rows, n_negatives)) * 3
    real = random.random((n_rows, n_negatives)) < 0.7
    found = dpo_loss(*(torch.from_numpy(x) for x in (target, negatives, real)), beta)
    for row in range(n_rows):
        kept = [beta * (negatives[row, c] - target[row]) for c in range(n_negatives) if real[row, c]]
        expected = -math.log(sigmoid(-math.log(sum(map(math.exp, kept))))) if kept else 0.0
        assert found[row].item() == pytest.approx(expected, abs=1e-9)
        if len(kept) == 1:  # DPO itself
            assert found[row].item() == pytest.approx(-math.log(sigmoid(-kept[0])), abs=1e-9)


def test_dpo_at_the_reference_is_the_logarithm_of_the_number_of_items():
    zero = torch.zeros(2, 7)
    assert dpo_loss(zero[:, 0], zero, torch.ones(2, 7, dtype=torch.bool), 2.0).tolist() == pytest.approx(
        [math.log(8)] * 2
    )


def test_dpo_pushes_the_target_up_and_the_negatives_down():
    target, negatives = torch.zeros(2, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    real = torch.tensor([[True, True, False], [False, False, False]])
    dpo_loss(target, negatives, real, 1.0).sum().backward()
    assert target.grad[0] < 0 and target.grad[1] == 0
    assert (negatives.grad[0, :2] > 0).all() and negatives.grad[0, 2] == 0 and (negatives.grad[1] == 0).all()


def slow_rewards(hit, real, weight):
    out = np.zeros(hit.shape)
    for row in range(len(hit)):
        places = [c for c in range(hit.shape[1]) if real[row, c]]
        total = sum(1 / math.log2(c + 2) for c in places)
        found = any(hit[row, c] for c in places)
        for c in places:
            out[row, c] = 1.0 if hit[row, c] else -weight / math.log2(c + 2) / total if found else 0.0
    return out


def slow_advantages(reward, real):
    out = np.zeros(reward.shape)
    for row in range(len(reward)):
        values = [reward[row, c] for c in range(reward.shape[1]) if real[row, c]]
        if values:
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            for c in range(reward.shape[1]):
                out[row, c] = (reward[row, c] - mean) / (deviation + 1e-4) if real[row, c] else 0.0
    return out


def lists(random, n_rows, size):
    """Padding last, one hit or none."""
    real = np.arange(size) < random.integers(0, size + 1, n_rows)[:, None]
    hit = (np.arange(size) == random.integers(0, size + 3, n_rows)[:, None]) & real
    return hit, real


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 5), st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]))
def test_rewards_and_advantages_are_their_formulas(seed, n_rows, size, weight):
    hit, real = lists(np.random.default_rng(seed), n_rows, size)
    reward = rank_rewards(torch.from_numpy(hit), torch.from_numpy(real), weight)
    np.testing.assert_allclose(reward.numpy(), slow_rewards(hit, real, weight), atol=1e-6)
    found = advantages(reward.double(), torch.from_numpy(real))
    np.testing.assert_allclose(found.numpy(), slow_advantages(reward.double().numpy(), real), atol=1e-6)


def test_a_list_without_a_hit_teaches_nothing_and_one_with_a_hit_punishes_confident_misses():
    hit = torch.tensor([[False, False, True, False], [False, False, False, False]])
    reward = rank_rewards(hit, torch.ones_like(hit), 1.0)
    share = [1 / math.log2(c + 2) for c in range(4)]
    assert (reward[0].sum() - 1).item() == pytest.approx(-(1 - share[2] / sum(share)))
    assert reward[0, 0] < reward[0, 1] < reward[0, 3] < 0 < reward[0, 2] == 1
    assert (advantages(reward, torch.ones_like(hit))[1] == 0).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.1, 1.0, 4.0]), st.sampled_from([0.0, 0.3]))
def test_grpo_is_its_formula(seed, apart, kl_weight):
    random = np.random.default_rng(seed)
    rule = GrpoSettings(clip_low=0.2, clip_high=0.3, early_clip=0.1, kl_weight=kl_weight)
    n_rows, size, length = 3, 4, 2
    logp = -random.random((n_rows, size, length)) * 3
    old = logp.sum(2) + random.normal(size=(n_rows, size)) * apart
    reference = logp + random.normal(size=logp.shape) * 0.5
    advantage = random.normal(size=(n_rows, size))
    real = np.arange(size) < random.integers(1, size + 1, n_rows)[:, None]
    found = grpo_loss(
        *(torch.from_numpy(x) for x in (logp, old, reference)),
        torch.from_numpy(advantage * real),
        torch.from_numpy(real),
        rule,
    )
    for row in range(n_rows):
        terms = []
        for c in range(int(real[row].sum())):
            p_now, p_old = math.exp(logp[row, c].sum()), math.exp(old[row, c])
            ratio = p_now / max(p_old, p_now / (1 + 0.3 + 0.1))
            best = min(ratio * advantage[row, c], min(max(ratio, 0.8), 1.3) * advantage[row, c])
            kl = sum(math.exp(r - p) - (r - p) - 1 for r, p in zip(reference[row, c], logp[row, c], strict=True))
            terms.append(-best + kl_weight * kl)
        assert found[row].item() == pytest.approx(sum(terms) / len(terms), abs=1e-9)


def test_gradients_have_the_sign_of_the_advantage_and_stop_at_the_clip():
    rule = GrpoSettings(clip_low=0.2, clip_high=0.2, early_clip=0.1)

    def slope(log_ratio, advantage):
        logp = torch.tensor([[log_ratio]], requires_grad=True)
        clipped_objective(logp, torch.zeros(1, 1), torch.tensor([[advantage]]), rule).sum().backward()
        return logp.grad.item()

    assert slope(0.0, 2.0) == pytest.approx(2.0) and slope(0.0, -2.0) == pytest.approx(-2.0)
    assert slope(0.3, 1.0) == 0.0 and slope(-0.3, -1.0) == 0.0  # far enough already
    assert slope(-0.3, 1.0) > 0 and slope(0.3, -1.0) < 0  # gone the wrong way: comes back
    assert slope(math.log(100), -1.0) == pytest.approx(-1.3)  # ECPO: 1 + .2 + .1, not 100


def test_k3_is_never_negative_and_its_mean_is_the_exact_distance():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    values = k3(policy.log(), reference.log())
    assert (values >= 0).all()
    exact = (policy * (policy / reference).log()).sum()
    assert (policy * values).sum().item() == pytest.approx(exact.item())
    assert (k3(policy.log(), policy.log()) == 0).all()


def test_a_bandit_learns_its_target():
    """Eight arms, all in the list: the probability of the target goes to 1."""
    logits = torch.zeros(8, requires_grad=True)
    step = torch.optim.SGD([logits], lr=0.5)
    hit, real = torch.arange(8)[None] == 3, torch.ones(1, 8, dtype=torch.bool)
    reward = advantages(rank_rewards(hit, real, 1.0), real)
    for _ in range(150):
        logp = logits.log_softmax(0)[None, :, None]
        loss = grpo_loss(logp, logp.detach().sum(2), None, reward, real, GrpoSettings(kl_weight=0.0))
        step.zero_grad()
        loss.sum().backward()
        step.step()
    assert logits.softmax(0)[3] > 0.99


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        *itertools.product(
            [DpoSettings],
            [{"beta": 0.0}, {"n_negatives": 0}, {"negatives": "best"}, {"made_by": "me"}, {"sft_weight": -1.0}],
        ),
        *itertools.product(
            [GrpoSettings],
            [
                {"n_rollouts": 1}, {"rollouts": "free"}, {"temperature": 0.0}, {"n_updates": 0}, {"clip_low": 1.0},
                {"clip_high": 0.0}, {"early_clip": 0.0}, {"rank_weight": -1.0}, {"kl_weight": math.inf},
                {"temperature": 2.0},
            ],
        ),
        *itertools.product([Alarms], [{"min_valid": 2.0}, {"min_coverage": -1}, {"min_reward": 2}, {"max_kl": 0.0}]),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(make, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        make(**bad)
