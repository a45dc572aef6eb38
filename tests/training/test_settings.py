import dataclasses
import math

import pytest

from genrec.errors import ConfigError
from genrec.training.settings import TrainSettings, decisive


def test_schedules():
    cosine = TrainSettings(warmup_steps=4)
    assert [cosine.rate_factor(s, 104) for s in range(4)] == [1 / 4, 2 / 4, 3 / 4, 1.0]
    assert cosine.rate_factor(4, 104) == 1.0
    assert cosine.rate_factor(54, 104) == pytest.approx(0.05 + 0.95 / 2)
    assert cosine.rate_factor(104, 104) == pytest.approx(0.05)
    root = TrainSettings(warmup_steps=4, schedule="inverse_sqrt")
    assert [root.rate_factor(s, 0) for s in (3, 15, 35)] == [1.0, math.sqrt(4 / 16), math.sqrt(4 / 36)]
    flat = TrainSettings(warmup_steps=2, schedule="constant")
    assert [flat.rate_factor(s, 9) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
    for schedule in ("cosine", "inverse_sqrt", "constant"):
        assert TrainSettings(warmup_steps=0, schedule=schedule).rate_factor(0, 10) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"label_smoothing": 1.0},
        {"prefix_drop": -0.1},
        {"ema_decay": 1.0},
        {"eval_users": 2001},
        {"max_seconds": 0.0},
        {"betas": (0.9,)},
        {"schedule": "linear"},
        {"softmax": "item"},
        {"metric": "loss"},
        {"max_grad_norm": 0.0},
        {"save_every": -1},
        {"save_seconds": -1.0},
        {"accumulation_steps": 0},
        {"accumulation_steps": 300},
    ],
)
def test_values_out_of_range_are_named(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        TrainSettings(**change)


def test_what_came_later_makes_no_other_training_of_an_old_one():
    plain = decisive(dataclasses.asdict(TrainSettings()))
    assert not {"packing", "accumulation_steps", "gradient_checkpointing", "n_workers", "sam_rho"} & set(plain)
    assert plain["batch_size"] == 256
    other = decisive(dataclasses.asdict(TrainSettings(packing=True, accumulation_steps=2, gradient_checkpointing=True)))
    assert other == {**plain, "packing": True, "accumulation_steps": 2}
    assert decisive(dataclasses.asdict(TrainSettings(sam_rho=0.1))) == {**plain, "sam_rho": 0.1}


def test_lists_from_json_become_tuples():
    assert TrainSettings(betas=[0.8, 0.9]) == TrainSettings(betas=(0.8, 0.9))
