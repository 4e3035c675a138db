"""Forecast score: what is counted of forecasts that were checked, and what it claims of none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.forecast_score import ForecastScore
from actors.messages import ForecastCheck


def scored(*checks: ForecastCheck) -> ForecastScore:
    score = ForecastScore()
    for check in checks:
        score.add(check)
    return score


FOUR = (
    ForecastCheck(0.9, True, True, True),
    ForecastCheck(0.9, False, True, True),
    ForecastCheck(0.9, True, False, True),
    ForecastCheck(0.1, True, False, False),
)


def test_a_score_counts_classes_confusion_and_three_baselines() -> None:
    score = scored(*FOUR)

    summary = score.summary()

    assert (score.accuracy, score.baseline, score.largest_class) == (0.75, 0.25, 0.5)
    assert (score.balanced_accuracy, score.usual) == (0.75, 0.75)
    assert summary["demanding_share"] == 0.5
    assert summary["confusion"] == {
        "calm_calm": 1,
        "calm_demanding": 0,
        "demanding_calm": 1,
        "demanding_demanding": 2,
    }


def test_skill_is_the_share_of_a_baselines_errors_that_is_avoided() -> None:
    skill = scored(*FOUR).summary()["skill"]

    assert skill == {
        "same_as_last": pytest.approx(0.5 / 0.75, abs=1e-4),
        "time_of_day": 0.0,
        "largest_class": 0.5,
    }


def test_calibration_is_counted_in_fifths() -> None:
    score = scored(*FOUR)

    assert score.summary()["calibration"] == [
        {"from": 0.0, "n": 1, "forecast": 0.1, "realised": 0.0},
        {"from": 0.8, "n": 3, "forecast": 0.9, "realised": 0.6667},
    ]
    assert score.brier == pytest.approx((0.01 + 0.01 + 0.81 + 0.01) / 4)
    assert score.calibration_error == pytest.approx((0.1 + 3 * (0.9 - 2 / 3)) / 4)


def test_always_saying_the_same_is_no_better_than_chance_once_balanced() -> None:
    score = scored(*(ForecastCheck(0.1, False, number == 0) for number in range(10)))

    assert score.accuracy == 0.9
    assert score.balanced_accuracy == 0.5
    assert score.summary()["skill"] == {
        "same_as_last": 0.0,
        "time_of_day": None,
        "largest_class": 0.0,
    }


def test_an_empty_score_claims_nothing() -> None:
    summary = ForecastScore().summary()

    assert summary["n"] == 0
    assert summary["calibration"] == []
    assert {summary[name] for name in ("accuracy", "balanced_accuracy", "brier", "ece")} == {None}


def test_only_the_last_checks_count() -> None:
    score = ForecastScore(2)
    for check in FOUR:
        score.add(check)

    assert score.count == 2
    assert score.accuracy == 0.5


@given(
    st.lists(
        st.builds(
            ForecastCheck, st.floats(0, 1), st.booleans(), st.booleans(), st.none() | st.booleans()
        ),
        min_size=1,
        max_size=40,
    )
)
def test_every_share_lies_between_zero_and_one(checks: list[ForecastCheck]) -> None:
    summary = scored(*checks).summary()

    for name in ("accuracy", "balanced_accuracy", "demanding_share", "brier", "ece"):
        value = summary[name]
        assert isinstance(value, float)
        assert 0.0 <= value <= 1.0
