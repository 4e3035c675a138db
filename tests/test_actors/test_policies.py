"""Settings of the actors: what they refuse."""

import pytest
from pydantic import ValidationError

from actors.policies import (
    ActorSettings,
    ComplexityWeights,
    ExecutionSettings,
    FeedSettings,
    MonitoringSettings,
    ReasoningSettings,
    RiskLimits,
)


@pytest.mark.parametrize("owner", ActorSettings.__subclasses__())
def test_every_owner_has_safe_defaults_and_refuses_unknown_keys(owner: type[ActorSettings]) -> None:
    owner()

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        owner.model_validate({"not_a_setting": 1})


def test_settings_cannot_be_changed_after_they_are_made() -> None:
    limits = RiskLimits()

    with pytest.raises(ValidationError, match="frozen"):
        setattr(limits, "max_open_positions", 9)  # noqa: B010 - a plain assignment would not type


def test_weights_that_do_not_sum_to_one_are_refused_with_their_sum() -> None:
    with pytest.raises(ValidationError, match=r"must sum to 1, they sum to 1\.1"):
        ComplexityWeights(volatility=0.4)


def test_a_stop_multiplier_of_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        ExecutionSettings.model_validate({"risk_multiplier": 0})


def test_an_instrument_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="names Nifty more than once"):
        FeedSettings(instruments=("Nifty", "Sensex", "Nifty"))


def test_a_feed_speed_is_a_number_or_max() -> None:
    assert FeedSettings(speed="max").speed == "max"
    assert FeedSettings.model_validate({"speed": 0.5}).speed == 0.5

    for impossible in (0, -1, "fast", float("inf"), float("nan")):
        with pytest.raises(ValidationError):
            FeedSettings.model_validate({"speed": impossible})


def test_all_limits_out_of_order_are_reported_together() -> None:
    with pytest.raises(ValidationError) as error:
        MonitoringSettings(latency_warning_ms=200.0, memory_warning_gb=9.0)

    assert "latency_warning_ms 200 must be below latency_critical_ms 100" in str(error.value)
    assert "memory_warning_gb 9 must be below memory_critical_gb 4" in str(error.value)


@pytest.mark.parametrize(
    ("owner", "key", "value"),
    [
        (RiskLimits, "initial_capital", 0),
        (RiskLimits, "max_daily_loss", 0),
        (RiskLimits, "max_drawdown", 1.5),
        (RiskLimits, "min_confidence", float("nan")),
        (RiskLimits, "max_open_positions", 0),
        (ReasoningSettings, "warm_up_bars", 0),
        (ExecutionSettings, "max_order_rate_per_second", 10),
        (ExecutionSettings, "slippage_ticks", -1),
        (FeedSettings, "instruments", []),
    ],
)
def test_values_out_of_range_are_refused(
    owner: type[ActorSettings], key: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=key):
        owner.model_validate({key: value})
