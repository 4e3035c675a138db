"""Forecast: what a window was, what was said of it before, and how often that was right."""

import math
import random
import statistics
from collections.abc import Sequence
from decimal import Decimal

import msgspec
import pytest
from builders import OPEN_NS, SECOND_NS
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.complexity import MarketComplexityActor
from actors.forecast import (
    FEATURES,
    REFERENCE_NS,
    Forecaster,
    Outlook,
    bar_variance,
    window_bars,
)
from actors.forecast_score import ForecastScore
from actors.messages import Bar, MarketContext
from actors.policies import (
    ComplexityCoefficients,
    ComplexitySettings,
    ForecastCoefficients,
    RegimeModel,
)
from actors.regimes import RegimeFilter, straightness

BAR_NS = 300 * SECOND_NS
DAY_NS = 86_400 * SECOND_NS
BARS_PER_DAY = 75
WINDOW = 12


def coefficients(**weights: float) -> ForecastCoefficients:
    return ForecastCoefficients(
        intercept=0.0,
        weights=tuple(weights.get(name, 0.0) for name in FEATURES),
        fitted_from="2024-01-01",
        fitted_until="2024-01-02",
    )


def market(days: int, seed: int = 1) -> list[Bar]:
    """Return bars of a market that is calm or wild for about two hours on end."""
    draw = random.Random(seed)
    price, wild, bars = 1000.0, False, []
    for number in range(days * BARS_PER_DAY):
        day, place = divmod(number, BARS_PER_DAY)
        wild = wild != (draw.random() < 0.04)
        size = 0.003 if wild else 0.0006
        path = [price]
        for _ in range(8):
            path.append(path[-1] * math.exp(draw.gauss(0.0, size)))
        opened_ns = OPEN_NS + day * DAY_NS + place * BAR_NS
        bars.append(a_bar_of(path, opened_ns))
        price = path[-1]
    return bars


def a_bar_of(path: Sequence[float], opened_ns: int) -> Bar:
    prices = [Decimal(f"{price:.4f}") for price in path]
    return Bar(
        instrument="Nifty",
        timeframe="5",
        open=prices[0],
        high=max(prices),
        low=min(prices),
        close=prices[-1],
        volume=0,
        open_ns=opened_ns,
        close_ns=opened_ns + BAR_NS,
        ticks=4,
    )


def outlooks(bars: Sequence[Bar], weights: ForecastCoefficients | None) -> list[Outlook]:
    forecaster = Forecaster(WINDOW, weights)
    return [forecaster.add(bar) for bar in bars]


def test_a_check_says_what_a_count_over_all_windows_says() -> None:
    bars = market(12)
    found = outlooks(bars, coefficients(last=1.0))
    variances = [bar_variance(bar) for bar in bars]
    windows = [
        math.log(math.fsum(variances[end - WINDOW : end]) / WINDOW) if end >= WINDOW else None
        for end in range(1, len(bars) + 1)
    ]
    checked = 0
    for place, outlook in enumerate(found):
        if outlook.check is None:
            continue
        made = place - WINDOW
        reference = sorted(
            window
            for window, bar in zip(windows[:made], bars[:made], strict=True)
            if window is not None
            and bar.close_ns > bars[made].close_ns - REFERENCE_NS - BAR_NS * BARS_PER_DAY
        )
        median = reference[len(reference) // 2]
        now, before = windows[place], windows[made]
        assert now is not None
        assert before is not None
        assert outlook.check.is_demanding == (now > median)
        assert outlook.check.was_demanding == (before > median)
        features = found[made].features
        assert features is not None
        assert outlook.check.usually_demanding == (features[0] > 0.0)
        assert outlook.check.probability == found[made].probability
        checked += 1
    assert checked > 200


def test_nothing_is_forecast_before_a_week_has_been_seen() -> None:
    bars = market(9)
    found = outlooks(bars, coefficients(last=1.0))

    first = next(place for place, one in enumerate(found) if one.probability is not None)

    assert 6 * DAY_NS < bars[first].close_ns - bars[0].open_ns < 8 * DAY_NS
    assert all(one.check is None for one in found[: first + WINDOW])


@settings(max_examples=15)
@given(cut=st.integers(550, 890))
def test_what_comes_later_changes_no_forecast(cut: int) -> None:
    whole = outlooks(_LONG, coefficients(last=1.0, today=0.5))

    assert outlooks(_LONG[:cut], coefficients(last=1.0, today=0.5)) == whole[:cut]


_LONG = market(12)


def test_in_a_market_whose_volatility_lasts_recent_movement_tells_the_next_window() -> None:
    score, blind = ForecastScore(), ForecastScore()
    for one in outlooks(market(20), coefficients(recent_3=1.0)):
        if one.check is not None:
            score.add(one.check)
    for one in outlooks(market(20), coefficients(recent_3=-1.0)):
        if one.check is not None:
            blind.add(one.check)

    assert score.accuracy is not None
    assert score.largest_class is not None
    assert blind.accuracy is not None
    assert score.accuracy > 0.75 > score.largest_class
    assert blind.accuracy < 0.5


def test_without_coefficients_there_are_features_and_no_forecast() -> None:
    found = outlooks(market(9), None)

    assert found[-1].features is not None
    assert len(found[-1].features) == len(FEATURES)
    assert all(one.probability is None and one.check is None for one in found)


def test_the_distribution_forgets_what_is_older_than_four_weeks() -> None:
    forecaster = Forecaster(WINDOW, None)
    for bar in market(40):
        forecaster.add(bar)

    assert len(forecaster._ended) == len(forecaster._ordered) <= 28 * BARS_PER_DAY
    assert sorted(size for _, size in forecaster._ended) == forecaster._ordered


def test_the_variance_within_a_bar_is_that_of_its_path_on_average() -> None:
    draw = random.Random(3)
    estimates = []
    for _ in range(400):
        path = [1000.0]
        for _ in range(400):
            path.append(path[-1] * math.exp(draw.gauss(0.0, 0.0005)))
        estimates.append(bar_variance(a_bar_of(path, OPEN_NS)))

    # 400 steps miss a little of the reach of a continuous path.
    assert statistics.fmean(estimates) == pytest.approx(400 * 0.0005**2, rel=0.15)


def test_a_bar_that_never_moved_has_a_finite_logarithm() -> None:
    assert math.isfinite(math.log(bar_variance(a_bar_of([1000.0, 1000.0], OPEN_NS))))


@pytest.mark.parametrize(("minutes", "bars"), [(1, 60), (2, 30), (5, 12), (15, 4), (60, 1)])
def test_a_window_is_an_hour_but_at_least_one_bar(minutes: int, bars: int) -> None:
    assert window_bars(minutes) == bars


# Regimes

CHAIN = RegimeModel(
    start=(0.4, 0.4, 0.2),
    transitions=((0.9, 0.08, 0.02), (0.08, 0.9, 0.02), (0.05, 0.05, 0.9)),
    means=((0.0, 0.5), (-0.5, 0.1), (1.5, 0.3)),
    variances=((0.3, 0.02), (0.3, 0.01), (0.4, 0.05)),
)


@given(
    st.lists(
        st.tuples(st.floats(-50, 50), st.floats(0, 1)),
        min_size=1,
        max_size=40,
    )
)
def test_regime_probabilities_sum_to_one_whatever_is_seen(
    seen: list[tuple[float, float]],
) -> None:
    chain = RegimeFilter(CHAIN)

    for excess, straight in seen:
        probabilities = chain.update(excess, straight)
        assert sum(probabilities) == pytest.approx(1.0)
        assert all(0.0 < chance <= 1.0 for chance in probabilities)


def test_the_filter_gives_what_summing_over_all_regime_paths_gives() -> None:
    seen = [(0.1, 0.4), (1.2, 0.3), (-0.4, 0.2), (0.9, 0.35)]

    def density(state: int, at: tuple[float, float]) -> float:
        return math.prod(
            math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            for x, m, v in zip(at, CHAIN.means[state], CHAIN.variances[state], strict=True)
        )

    totals = [0.0, 0.0, 0.0]
    for path in range(3 ** len(seen)):
        states = [path // 3**step % 3 for step in range(len(seen))]
        chance = CHAIN.start[states[0]] * density(states[0], seen[0])
        for before, now, at in zip(states, states[1:], seen[1:], strict=False):
            chance *= CHAIN.transitions[before][now] * density(now, at)
        totals[states[-1]] += chance
    chain = RegimeFilter(CHAIN)
    for excess, straight in seen:
        found = chain.update(excess, straight)

    assert found == pytest.approx([total / sum(totals) for total in totals])


def test_straightness_is_one_for_a_straight_way_and_zero_for_none() -> None:
    assert straightness([1.0, 2.0, 3.0]) == 1.0
    assert straightness([1.0, 2.0, 1.0]) == 0.0
    assert straightness([5.0, 5.0]) == 0.0


# In the actor


def test_a_context_carries_forecast_check_and_regimes_once_they_are_known() -> None:
    actor = MarketComplexityActor(
        ComplexitySettings(
            coefficients=ComplexityCoefficients(
                forecasts={"5": coefficients(last=1.0)}, regimes={"5": CHAIN}
            )
        )
    )
    contexts: list[MarketContext] = []
    for bar in market(9):
        contexts.extend(actor.handle(bar))

    first, last = contexts[0], contexts[-1]
    assert (first.demand, first.checked, first.regime_probabilities) == (None, None, ())
    assert last.demand is not None
    assert last.checked is not None
    assert last.checked.probability == contexts[-1 - WINDOW].demand
    assert sum(last.regime_probabilities) == pytest.approx(1.0)


def test_a_timeframe_without_coefficients_is_not_forecast() -> None:
    actor = MarketComplexityActor(
        ComplexitySettings(
            coefficients=ComplexityCoefficients(forecasts={"15": coefficients(last=1.0)})
        )
    )

    contexts = [context for bar in market(9) for context in actor.handle(bar)]

    assert all(context.demand is None and context.checked is None for context in contexts)


def test_bars_that_are_not_whole_are_in_no_forecast_check_or_regime() -> None:
    settings = ComplexitySettings(
        coefficients=ComplexityCoefficients(
            forecasts={"5": coefficients(last=1.0)}, regimes={"5": CHAIN}
        )
    )
    spoilt = {40: {"is_complete": False}, 73: {"is_continuous": False}}
    bars = [
        msgspec.structs.replace(bar, **spoilt.get(number % BARS_PER_DAY, {}))
        for number, bar in enumerate(market(9))
    ]
    whole = [bar for bar in bars if bar.is_continuous and bar.is_complete]

    mixed, alone = MarketComplexityActor(settings), MarketComplexityActor(settings)
    contexts = [context for bar in bars for context in mixed.handle(bar)]
    expected = [context for bar in whole for context in alone.handle(bar)]

    assert [context for context in contexts if context.bar in whole] == expected
    assert expected[-1].checked is not None
    assert expected[-1].regime_probabilities
    assert all(
        (context.demand, context.checked, context.regime_probabilities) == (None, None, ())
        for context in contexts
        if context.bar not in whole
    )
