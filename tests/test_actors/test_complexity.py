"""Complexity: what price says, what other instruments say, and what nobody says yet."""

import math
import statistics
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, get_args

import msgspec
import pytest
from builders import a_bar, outputs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.complexity import NEUTRAL_COMPLEXITY, MarketComplexityActor, weighted_complexity
from actors.messages import Bar, MarketContext, Regime
from actors.policies import ComplexitySettings, ComplexityWeights
from hrm.features import REGIMES, complexity_history, complexity_score


def contexts_of(actor: MarketComplexityActor, *bars: Bar) -> list[MarketContext]:
    return [context for context in outputs_of(actor, *bars) if isinstance(context, MarketContext)]


def an_actor(**settings: Any) -> MarketComplexityActor:
    return MarketComplexityActor(ComplexitySettings(**settings))


def bars_along(closes: Sequence[float], **fields: Any) -> list[Bar]:
    """Return consecutive bars from each close to the next, half a point beyond both."""
    bars = []
    for number, (before, after) in enumerate(zip([closes[0], *closes], closes, strict=False)):
        opened, closed = Decimal(str(round(before, 2))), Decimal(str(round(after, 2)))
        bars.append(
            a_bar(
                closed,
                number,
                open=opened,
                high=max(opened, closed) + Decimal("0.5"),
                low=min(opened, closed) - Decimal("0.5"),
                **fields,
            )
        )
    return bars


def wave(count: int, size: float = 5.0, period: float = 3.7, shift: float = 0.0) -> list[float]:
    return [1000 + size * math.sin(shift + n * 2 * math.pi / period) for n in range(count)]


# What price says


def test_every_bar_gets_exactly_one_context_that_carries_it() -> None:
    bars = bars_along(wave(30))

    contexts = contexts_of(an_actor(), *bars)

    assert [context.bar for context in contexts] == bars
    written = msgspec.msgpack.encode(contexts)  # refuses numbers that are numpy's
    assert msgspec.msgpack.decode(written, type=list[MarketContext]) == contexts
    assert [context.bars_seen for context in contexts] == list(range(1, 31))


def test_components_equal_those_that_training_computes_from_the_same_bars() -> None:
    bars = bars_along([*wave(250), *wave(100, size=20)])

    last = contexts_of(an_actor(), *bars)[-1]

    history = complexity_history([float(bar.close) for bar in bars])
    expected = history.volatility[-1], history.regime_stability[-1]
    assert (last.volatility, last.regime_stability) == expected
    assert last.regime == REGIMES[history.regime[-1]]
    assert last.complexity == complexity_score(*expected)


def test_a_sudden_storm_is_volatile_and_more_complex_than_the_calm_before() -> None:
    contexts = contexts_of(an_actor(), *bars_along([*wave(200), *wave(15, size=40)]))

    calm, storm = contexts[199], contexts[-1]
    assert storm.regime == "volatile"
    assert storm.volatility > 0.95
    assert storm.complexity > calm.complexity


def test_a_steady_climb_is_trending() -> None:
    climb = [1000 + n * 2 + (n % 3) for n in range(60)]
    falling_apart = [*wave(100, size=30), *(1000.0 + step for step in climb)]

    last = contexts_of(an_actor(), *bars_along(falling_apart))[-1]

    assert last.regime == "trending"


def test_instruments_and_timeframes_do_not_touch_each_other() -> None:
    own = bars_along(wave(60))
    others = [*bars_along(wave(60, size=50), timeframe="15")]
    alone = contexts_of(an_actor(), *own)

    mixed = contexts_of(
        an_actor(), *(bar for pair in zip(own, others, strict=True) for bar in pair)
    )

    assert [context for context in mixed if context.timeframe == "5"] == alone


# Warming up and missing sources


def test_twenty_bars_are_warm_up_and_complexity_is_neutral() -> None:
    contexts = contexts_of(an_actor(), *bars_along(wave(21)))

    warming, warm = contexts[19], contexts[20]
    assert warming.complexity == NEUTRAL_COMPLEXITY
    assert warming.missing == ("volatility", "regime", "news", "correlation")
    assert warm.missing == ("news", "correlation")


def test_a_missing_source_neither_calms_nor_alarms() -> None:
    weights = ComplexityWeights()

    calm = weighted_complexity(
        {"volatility": 0.0, "regime": 0.0, "news": None, "correlation": None}, weights
    )
    storm = weighted_complexity(
        {"volatility": 1.0, "regime": 1.0, "news": None, "correlation": None}, weights
    )

    assert (calm, storm) == (0.0, 1.0)


def test_weights_that_leave_nothing_to_weigh_give_neutral_complexity() -> None:
    weights = ComplexityWeights(volatility=0, regime=0, news=1, correlation=0)

    assert weighted_complexity({"volatility": 1.0, "news": None}, weights) == NEUTRAL_COMPLEXITY


ratios = st.floats(0, 1)
maybe = st.none() | ratios


@given(ratios, ratios, maybe, maybe)
def test_the_default_weights_agree_with_training(
    volatility: float, stability: float, news: float | None, stress: float | None
) -> None:
    known = {
        "volatility": volatility,
        "regime": 1.0 - stability,
        "news": news,
        "correlation": stress,
    }

    here = weighted_complexity(known, ComplexityWeights())

    assert here == pytest.approx(complexity_score(volatility, stability, news, stress))


@given(maybe, maybe, maybe, maybe, st.lists(st.integers(0, 10), min_size=4, max_size=4))
def test_complexity_is_always_a_ratio(
    volatility: float | None,
    regime: float | None,
    news: float | None,
    correlation: float | None,
    parts: list[int],
) -> None:
    total = sum(parts) or 4
    shares = [part / total for part in parts] if sum(parts) else [0.25] * 4
    weights = ComplexityWeights(
        volatility=shares[0], regime=shares[1], news=shares[2], correlation=shares[3]
    )

    complexity = weighted_complexity(
        {"volatility": volatility, "regime": regime, "news": news, "correlation": correlation},
        weights,
    )

    assert 0.0 <= complexity <= 1.0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["Nifty", "Bank_Nifty"]), st.integers(1, 10**6)), max_size=60
    )
)
def test_any_prices_give_contexts_within_their_ranges(
    prices: list[tuple[str, int]],
) -> None:
    bars = [
        a_bar(Decimal(price) / 100, number, instrument=instrument)
        for number, (instrument, price) in enumerate(prices)
    ]

    contexts = contexts_of(an_actor(correlation_window=10), *bars)

    for context in contexts:
        assert 0.0 <= context.complexity <= 1.0
        assert 0.0 <= context.volatility <= 1.0
        assert 0.0 <= context.regime_stability <= 1.0
        assert 0.0 <= context.correlation_score <= 1.0
        assert context.regime in get_args(Regime)
        assert context.atr is None or context.atr > 0


# Correlation


def pair_of(nifty: Sequence[float], bank: Sequence[float]) -> list[Bar]:
    first = bars_along(nifty)
    second = bars_along(bank, instrument="Bank_Nifty")
    return [bar for pair in zip(first, second, strict=True) for bar in pair]


def irregular(count: int, seed: int) -> list[float]:
    """Return a path of steps without pattern, the same for the same seed."""
    closes, state = [1000.0], seed
    for _ in range(count - 1):
        state = (1103515245 * state + 12345) % 2**31
        closes.append(closes[-1] + 4 * state / 2**31 - 2)
    return closes


def test_one_instrument_has_no_correlation_to_lose() -> None:
    last = contexts_of(an_actor(), *bars_along(irregular(300, 1)))[-1]

    assert "correlation" in last.missing
    assert last.correlation_score == 0.0


def test_correlation_warms_up_over_two_windows_of_common_returns() -> None:
    path = irregular(105, 1)

    contexts = contexts_of(an_actor(), *pair_of(path, path))

    named = [context for context in contexts if context.instrument == "Nifty"]
    assert "correlation" in named[100].missing
    assert "correlation" not in named[101].missing


def test_instruments_that_move_together_as_usual_are_not_stressed() -> None:
    path = irregular(200, 1)

    last = contexts_of(an_actor(), *pair_of(path, [2 * close for close in path]))[-1]

    assert last.correlation_score == pytest.approx(0.0, abs=0.01)


def test_instruments_that_part_ways_are_stressed_and_complexity_rises() -> None:
    path = irregular(251, 1)
    parted = [*path[:200], *(path[199] + close - 1000 for close in irregular(51, 99))]
    together = contexts_of(an_actor(), *pair_of(path, path))[-1]

    apart = contexts_of(an_actor(), *pair_of(path, parted))[-1]

    assert apart.correlation_score > 0.6
    assert together.correlation_score == pytest.approx(0.0)
    assert apart.missing == ("news",)


def test_an_instrument_that_fell_silent_is_masked_and_back_at_its_next_bars() -> None:
    path = irregular(160, 1)
    pairs = pair_of(path, path)
    silent = range(2 * 140, 2 * 150)  # Bank_Nifty makes no bar for ten of Nifty's
    heard = [bar for n, bar in enumerate(pairs) if n not in silent or bar.instrument == "Nifty"]

    contexts = [one for one in contexts_of(an_actor(), *heard) if one.instrument == "Nifty"]

    masked = [n for n, one in enumerate(contexts) if n > 101 and "correlation" in one.missing]
    assert masked == list(range(143, 151))
    assert all(contexts[n].correlation_score == 0.0 for n in masked)


def test_the_order_in_which_instruments_close_a_bar_does_not_matter() -> None:
    bars = 270  # more than the 250 returns that correlations are taken over
    path = irregular(bars, 1)
    alike = [close + other - 1000 for close, other in zip(path, irregular(bars, 2), strict=True)]
    first, second = bars_along(path), bars_along(alike, instrument="B")
    one_way = [bar for pair in zip(first, second, strict=True) for bar in pair]
    other_way = [bar for pair in zip(second, first, strict=True) for bar in pair]

    outputs = [contexts_of(an_actor(), *each) for each in (one_way, other_way)]

    by_name = [sorted(each, key=lambda c: (c.bar.close_ns, c.instrument)) for each in outputs]
    assert by_name[0] == by_name[1]
    assert "correlation" not in by_name[0][-1].missing


def test_a_bar_that_comes_late_counts_for_those_that_close_after_it() -> None:
    """What the others look like before a close is computed once, and anew after such a bar."""
    first, second = bars_along(irregular(120, 1)), bars_along(irregular(120, 1), instrument="B")
    in_turn = [bar for pair in zip(first, second, strict=True) for bar in pair]
    late = [*in_turn[:-3], in_turn[-2], in_turn[-3], in_turn[-1]]  # B's last but one comes late

    on_time, behind = (contexts_of(an_actor(), *each)[-1] for each in (in_turn, late))

    assert behind == on_time


def test_an_instrument_that_never_moves_has_no_usual_correlation() -> None:
    last = contexts_of(an_actor(), *pair_of(irregular(150, 1), [500.0] * 150))[-1]

    assert "correlation" in last.missing


# Average true range


def test_the_average_true_range_is_unknown_before_fourteen_bars() -> None:
    contexts = contexts_of(an_actor(), *bars_along([1000.0] * 14))

    assert [context.atr for context in contexts[:13]] == [None] * 13
    assert contexts[13].atr == Decimal(1)


def test_the_average_true_range_is_wilders() -> None:
    bars = bars_along([1000.0] * 14)
    bars.append(a_bar("1000", 14, high=Decimal(1010), low=Decimal(995)))

    last = contexts_of(an_actor(), *bars)[-1]

    assert last.atr == (Decimal(13 + 15) / 14).quantize(Decimal("1e-8"))


def test_a_jump_between_two_bars_counts_as_range() -> None:
    bars = [a_bar("1000", number) for number in range(13)]
    bars.append(a_bar("1028", 13))

    last = contexts_of(an_actor(), *bars)[-1]

    assert last.atr == Decimal(2)


def test_a_market_that_never_moved_has_no_average_true_range() -> None:
    contexts = contexts_of(an_actor(), *(a_bar("1000", number) for number in range(30)))

    assert {context.atr for context in contexts} == {None}


def test_the_period_of_the_average_true_range_is_a_setting() -> None:
    contexts = contexts_of(an_actor(atr_period=5), *bars_along([1000.0] * 5))

    assert [context.atr for context in contexts] == [None] * 4 + [Decimal(1)]


# Bars that models are trained without


def cut_short(bar: Bar) -> Bar:
    """Return the bar as a feed that was interrupted in it would tell it."""
    return msgspec.structs.replace(bar, is_complete=False)


def of_auction(bar: Bar) -> Bar:
    """Return the bar as an auction that stood still would make it, far from where it was."""
    far = bar.close + 40
    return msgspec.structs.replace(bar, open=far, high=far, low=far, close=far, is_continuous=False)


def is_whole(bar: Bar) -> bool:
    return bar.is_continuous and bar.is_complete


def without_some(bars: Sequence[Bar]) -> list[Bar]:
    """Return the bars with an auction at the end of each day of 75, and a gap in its middle."""
    spoils = {40: cut_short, 72: of_auction, 73: of_auction, 74: of_auction}
    return [spoils[n % 75](bar) if n % 75 in spoils else bar for n, bar in enumerate(bars)]


@pytest.mark.parametrize("spoil", [cut_short, of_auction])
def test_a_bar_that_is_not_whole_says_what_the_bars_before_it_said(
    spoil: Callable[[Bar], Bar],
) -> None:
    *before, bar = bars_along([*wave(250), *wave(51, size=20)])
    actor = an_actor()
    last = contexts_of(actor, *before)[-1]

    [context] = contexts_of(actor, spoil(bar))

    assert context == msgspec.structs.replace(last, bar=spoil(bar))


def test_a_bar_that_is_not_whole_before_all_others_says_nothing() -> None:
    [context] = contexts_of(an_actor(), cut_short(a_bar()))

    assert (context.volatility, context.regime, context.regime_stability) == (0.5, "ranging", 1.0)
    assert (context.bars_seen, context.complexity, context.atr) == (0, NEUTRAL_COMPLEXITY, None)


def test_components_are_those_of_training_from_the_whole_bars_alone() -> None:
    bars = without_some(bars_along(irregular(375, 4)))

    contexts = [context for context in contexts_of(an_actor(), *bars) if is_whole(context.bar)]

    history = complexity_history([float(bar.close) for bar in bars if is_whole(bar)])
    assert len(contexts) == len(history.volatility) == 355
    assert [context.volatility for context in contexts] == history.volatility.tolist()
    assert [context.regime_stability for context in contexts] == history.regime_stability.tolist()
    assert [context.regime for context in contexts] == [REGIMES[n] for n in history.regime]


def test_the_true_range_after_a_bar_that_is_not_whole_begins_at_the_last_close_that_counts() -> (
    None
):
    bars = [a_bar("1000", number) for number in range(13)]
    bars += [of_auction(a_bar("1000", 13)), a_bar("1028", 14)]

    last = contexts_of(an_actor(), *bars)[-1]

    assert last.atr == Decimal(2)


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["Nifty", "Bank_Nifty"]),
            st.integers(-500, 500),
            st.sampled_from([None, None, None, cut_short, of_auction]),
        ),
        min_size=60,
        max_size=140,
    ),
    together=st.booleans(),
)
def test_bars_that_are_not_whole_leave_no_trace_in_any_other_context(
    steps: list[tuple[str, int, Callable[[Bar], Bar] | None]], together: bool
) -> None:
    prices = {"Nifty": Decimal(22000), "Bank_Nifty": Decimal(45000)}
    bars: list[Bar] = []
    for number, (name, move, spoil) in enumerate(steps):
        for instrument in prices if together else (name,):
            prices[instrument] += Decimal(move) / 20
            bar = a_bar(prices[instrument], number, instrument=instrument)
            bars.append(bar if spoil is None or instrument != name else spoil(bar))

    contexts = contexts_of(an_actor(correlation_window=10), *bars)

    alone = contexts_of(an_actor(correlation_window=10), *filter(is_whole, bars))
    assert len(contexts) == len(bars)
    assert [context for context in contexts if is_whole(context.bar)] == alone


def test_a_bar_must_be_later_than_one_that_was_not_whole() -> None:
    actor = an_actor()
    outputs_of(actor, cut_short(a_bar(number=1)))

    with pytest.raises(ValueError, match="must be later than the bar before"):
        outputs_of(actor, a_bar(number=1))


# Refusals and bounds


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"open": Decimal("NaN")}, "open must be a positive number, was NaN"),
        ({"low": Decimal(-1)}, "low must be a positive number, was -1"),
        ({"high": Decimal(21000)}, "prices must lie between low and high"),
        ({"low": Decimal(23000)}, "prices must lie between low and high"),
    ],
)
def test_a_bar_that_cannot_be_true_is_refused_and_leaves_no_trace(
    fields: dict[str, Any], problem: str
) -> None:
    actor = an_actor()

    with pytest.raises(ValueError, match=problem):
        outputs_of(actor, a_bar(**fields))

    assert contexts_of(actor, a_bar())[0].bars_seen == 1


def test_a_bar_that_is_not_later_than_the_one_before_is_refused() -> None:
    actor = an_actor()
    outputs_of(actor, a_bar(number=1))

    with pytest.raises(ValueError, match="must be later than the bar before"):
        outputs_of(actor, a_bar(number=1))


def test_a_volatility_window_other_than_the_models_is_refused() -> None:
    with pytest.raises(ValueError, match="models are trained on 20"):
        an_actor(volatility_window=30)


def test_a_long_history_before_the_windows_does_not_matter_to_components() -> None:
    bars = bars_along(irregular(400, 3))

    long = contexts_of(an_actor(), *bars)[-1]
    short = contexts_of(an_actor(), *bars[-279:])[-1]

    assert (long.volatility, long.regime, long.complexity) == (
        short.volatility,
        short.regime,
        short.complexity,
    )


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.sampled_from(["both", "both", "one"])),
        min_size=30,
        max_size=50,
    )
)
def test_correlation_stress_is_what_plain_arithmetic_makes_of_common_returns(
    steps: list[tuple[float, float, str]],
) -> None:
    actor = an_actor(correlation_window=10)
    prices = {"Nifty": 20000.0, "Bank_Nifty": 45000.0}
    returns: dict[str, dict[int, float]] = {"Nifty": {}, "Bank_Nifty": {}}
    last: dict[str, float] = {}
    for number, (first, second, who) in enumerate(steps):
        found = None
        for name, move in (("Nifty", first), ("Bank_Nifty", second)):
            if who == "one" and name == "Bank_Nifty":
                continue
            if name == "Nifty":
                found = stress_of(returns["Nifty"], returns["Bank_Nifty"])
            prices[name] = round(prices[name] + move, 2)
            [context] = contexts_of(actor, a_bar(str(prices[name]), number, instrument=name))
            if name == "Nifty":
                assert context.correlation_score == pytest.approx(found or 0.0, abs=1e-9)
            if name in last:
                returns[name][number] = math.log(
                    Decimal(str(prices[name])) / Decimal(str(last[name]))
                )
            last[name] = prices[name]


def stress_of(own: dict[int, float], other: dict[int, float]) -> float | None:
    """Return the stress of one pair, written down once more with the standard library."""
    common = [at for at in own if at in other]
    if len(common) < 20 or common[-1] < list(own)[-3:][0]:
        return None

    def correlated(times: list[int]) -> float | None:
        try:
            return statistics.correlation([own[at] for at in times], [other[at] for at in times])
        except statistics.StatisticsError:
            return None

    usual, now = correlated(common[:-10]), correlated(common[-10:])
    if usual is None or now is None or abs(usual) < 0.1:
        return None
    return min(max(abs(usual) - math.copysign(1.0, usual) * now, 0.0) / abs(usual), 1.0)
