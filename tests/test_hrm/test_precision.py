"""Precision: timed, and chosen only where it gains."""

import pytest
import torch
from model_builders import a_config

from hrm.training.precision import (
    autocast,
    drawn_inputs,
    faster_precision,
    seconds_per_step,
)


@pytest.mark.parametrize(
    ("float32_s", "bfloat16_s", "chosen"),
    [
        (1.0, 0.5, "bfloat16"),
        (1.2, 1.0, "bfloat16"),
        (1.1, 1.0, "float32"),  # within the noise of timing
        (1.0, 11.0, "float32"),  # a processor that emulates it
    ],
)
def test_the_coarser_numbers_must_clearly_gain(
    float32_s: float, bfloat16_s: float, chosen: str
) -> None:
    assert faster_precision(float32_s, bfloat16_s) == chosen


def test_timing_takes_time_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()

    seconds = seconds_per_step(a_config(), "float32")

    assert 0.0 < seconds < 10.0
    assert torch.equal(torch.get_rng_state(), before)


def test_only_products_are_coarse_and_only_if_asked_for() -> None:
    weight = torch.ones(4, 4)

    with autocast("bfloat16"):
        coarse = weight @ weight
    with autocast("float32"):
        fine = weight @ weight

    assert (coarse.dtype, fine.dtype) == (torch.bfloat16, torch.float32)


def test_drawn_inputs_are_what_a_model_takes() -> None:
    config = a_config()

    inputs = drawn_inputs(config, 5)

    inputs.check_form(config, torch.device("cpu"))
    inputs.check(config)
    assert len(inputs) == 5
