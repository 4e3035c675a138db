"""Features: causal, scale-free, the same live and in training, strict about what they accept."""

import re
from collections.abc import Iterable

import numpy as np
import pytest
from feature_builders import BAR_NS, Columns, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm.config import Action, HRMConfig
from hrm.features import (
    ACCOUNT_NAMES,
    ATR_BARS,
    CONTEXT_BARS,
    CONTEXT_NAMES,
    FEATURE_NAMES,
    FEATURE_SCHEMA_SHA256,
    REGIMES,
    WARMUP_BARS,
    ComplexityComponents,
    ComplexityStream,
    account_features,
    average_true_range,
    bar_features,
    complexity_history,
    complexity_score,
    context_features,
    return_volatility,
    valid_actions,
)


def features_of(columns: Columns) -> NDArray[np.float32]:
    return bar_features(bar_ns=BAR_NS, **columns)


def first(columns: Columns, count: int) -> Columns:
    return {name: values[:count] for name, values in columns.items()}


def column(rows: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    return rows[:, FEATURE_NAMES.index(name)]


def complexity_of(closes: Iterable[float]) -> ComplexityComponents:
    """Return what a stream says of the last of these bars."""
    stream = ComplexityStream()
    return [stream.add(close) for close in closes][-1]


def test_every_bar_gets_one_finite_row() -> None:
    rows = features_of(walk(200))

    assert rows.shape == (200, len(FEATURE_NAMES))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def test_the_model_settings_expect_exactly_these_widths() -> None:
    inputs = HRMConfig().inputs

    assert (inputs.n_features, inputs.n_context) == (len(FEATURE_NAMES), len(CONTEXT_NAMES))
    assert len(ACCOUNT_NAMES) == 6


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cut=st.integers(WARMUP_BARS + 1, 199))
def test_no_row_knows_a_later_bar(seed: int, cut: int) -> None:
    history, other = walk(200, seed), walk(200, seed + 5000)
    changed = {name: np.concatenate([history[name][:cut], other[name][cut:]]) for name in history}

    np.testing.assert_array_equal(features_of(changed)[:cut], features_of(history)[:cut])


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.001, 10_000.0))
def test_prices_in_another_unit_give_the_same_features(factor: float) -> None:
    history = walk(120)
    scaled = {
        name: values * factor if name in ("open", "high", "low", "close") else values
        for name, values in history.items()
    }

    np.testing.assert_allclose(features_of(scaled), features_of(history), atol=1e-4)


def test_a_market_that_never_moves_gives_finite_zeros() -> None:
    count = 80
    still: Columns = {name: np.full(count, 100.0) for name in ("open", "high", "low", "close")}
    still |= {"volume": np.zeros(count), "close_ns": BAR_NS * np.arange(1, count + 1)}

    rows = features_of(still)

    told = ("_of_", "range_ratio", "_known", "volatility_level")
    kept = [i for i, name in enumerate(FEATURE_NAMES) if not any(part in name for part in told)]
    assert len(kept) > 40
    assert np.all(rows[:, kept] == 0)
    assert np.isfinite(rows).all()


def test_a_steady_rise_reads_as_a_trend() -> None:
    close = 100.0 * 1.001 ** np.arange(100)
    columns: Columns = {"open": close, "high": close, "low": close, "close": close}
    columns |= {"volume": np.zeros(100), "close_ns": BAR_NS * np.arange(1, 101)}

    rows = features_of(columns)[WARMUP_BARS:]

    assert np.all(column(rows, "efficiency_16") > 0.999)
    assert np.all(column(rows, "trend_32") > 0.999)
    np.testing.assert_allclose(column(rows, "return_1"), 1.0, atol=1e-5)


def test_missing_bars_are_counted() -> None:
    columns = walk(60)
    late = columns["close_ns"].copy()
    late[50:] += 3 * BAR_NS

    rows = features_of(columns | {"close_ns": late})

    np.testing.assert_allclose(column(rows, "missing_bars")[50], np.log1p(3.0), rtol=1e-6)
    assert np.all(column(rows, "missing_bars")[51:] == 0)


def test_unknown_volume_reads_as_the_usual_volume() -> None:
    columns = walk(60)

    rows = features_of(columns | {"volume": np.zeros(60)})

    assert np.all(column(rows, "volume_ratio_16") == 0)
    assert np.all(column(rows, "volume_known") == 0)


def test_noon_and_midnight_are_opposite() -> None:
    day = 86_400_000_000_000
    times = day * 20_000 + (day // 2) * np.arange(1, 61)

    rows = features_of(walk(60) | {"close_ns": times})[WARMUP_BARS:]

    np.testing.assert_allclose(np.abs(column(rows, "time_of_day_cos")), 1.0, atol=1e-6)
    assert np.all(column(rows, "time_of_day_cos")[1:] * column(rows, "time_of_day_cos")[:-1] < 0)


@pytest.mark.parametrize(
    ("name", "value", "claim"),
    [
        ("close", np.nan, "close must be a finite number, was nan in row 7"),
        ("volume", np.inf, "volume must be a finite number, was inf in row 7"),
        ("open", 0.0, "open must be positive, was 0.0 in row 7"),
        ("low", -1.0, "low must be positive, was -1.0 in row 7"),
        ("high", 1.0, "high must not be below low, was 1.0 in row 7"),
        ("low", 100.9, "low must be the lowest price of its bar, was 100.9 in row 7"),
        ("volume", -3.0, "volume must not be negative, was -3.0 in row 7"),
        ("close_ns", 5, "close_ns must be later than that of the bar before, was 5 in row 7"),
    ],
)
def test_a_bar_that_cannot_be_true_is_refused_by_row_and_value(
    name: str, value: float, claim: str
) -> None:
    columns = walk(50)
    columns["high"][7] = 101.0
    columns[name] = columns[name].copy()
    columns[name][7] = value

    with pytest.raises(ValueError, match=re.escape(claim)):
        features_of(columns)


def test_a_high_below_the_close_is_refused() -> None:
    columns = walk(50)
    columns["low"][9] = columns["close"][9] * 0.9
    columns["high"][9] = columns["close"][9] * 0.99

    with pytest.raises(ValueError, match="high must be the highest price of its bar"):
        features_of(columns)


def test_columns_of_unequal_length_are_refused() -> None:
    columns = walk(50)

    with pytest.raises(ValueError, match="equally long"):
        features_of(columns | {"open": columns["open"][1:]})


def test_times_that_are_not_integers_are_refused() -> None:
    columns = walk(50)

    with pytest.raises(ValueError, match="integer nanoseconds"):
        features_of(columns | {"close_ns": columns["close_ns"].astype(np.float64)})


@pytest.mark.parametrize("bar_ns", [0, -1])
def test_a_bar_length_that_is_not_positive_is_refused(bar_ns: int) -> None:
    with pytest.raises(ValueError, match="bar_ns must be positive"):
        bar_features(**walk(50), bar_ns=bar_ns)


def test_the_average_true_range_is_the_mean_of_fourteen() -> None:
    columns = walk(40)
    high, low, close = columns["high"], columns["low"], columns["close"]

    atr = average_true_range(high, low, close)

    reach = [
        max(high[i], close[i - 1]) - min(low[i], close[i - 1]) for i in range(40 - ATR_BARS, 40)
    ]
    assert np.isnan(atr[:ATR_BARS]).all()
    assert atr[-1] == pytest.approx(np.mean(reach))


def test_return_volatility_is_unknown_before_the_warm_up_and_then_the_root_mean_square() -> None:
    close = walk(50)["close"]

    volatility = return_volatility(close)

    assert np.isnan(volatility[:WARMUP_BARS]).all()
    assert volatility[-1] == pytest.approx(np.sqrt(np.mean(np.diff(np.log(close))[-32:] ** 2)))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 100), end=st.integers(1, 700))
def test_complexity_live_equals_complexity_in_training(seed: int, end: int) -> None:
    columns = walk(700, seed)
    history = complexity_history(columns["close"])

    live = complexity_of(columns["close"][max(end - CONTEXT_BARS, 0) : end])

    assert live.volatility == history.volatility[end - 1]
    assert live.regime_stability == history.regime_stability[end - 1]
    assert live.regime == REGIMES[history.regime[end - 1]]
    assert 0.0 <= live.volatility <= 1.0


def test_a_burst_of_moves_reads_as_volatile() -> None:
    generator = np.random.default_rng(3)
    size = np.concatenate([np.full(300, 0.001), np.full(20, 0.01)])
    close = 100.0 * np.exp(np.cumsum(size * generator.standard_normal(320)))

    components = complexity_of(close)

    assert components.regime == "volatile"
    assert components.volatility > 0.95


def test_a_calm_rise_reads_as_trending_and_becomes_stable() -> None:
    generator = np.random.default_rng(4)
    returns = np.concatenate([0.002 * generator.standard_normal(300), 0.001 * np.ones(60)])
    close = 100.0 * np.exp(np.cumsum(returns))

    components = complexity_of(close)

    assert components.regime == "trending"
    assert components.regime_stability == 1.0


def test_the_first_bars_read_as_a_calm_ranging_market() -> None:
    components = complexity_of([99.5])

    assert components == type(components)(0.5, "ranging", 1.0)


def test_absent_sources_neither_calm_nor_alarm() -> None:
    alone = complexity_score(0.8, 0.4)

    assert alone == pytest.approx(0.5 * 0.8 + 0.5 * 0.6)
    assert complexity_score(0.8, 0.4, 0.7, 0.7) == pytest.approx(0.6 * 0.7 + 0.4 * 0.7)
    assert complexity_score(0.8, 0.4, news_impact=1.0) > alone


@given(
    parts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    news=st.none() | st.floats(0, 1),
    stress=st.none() | st.floats(0, 1),
)
def test_complexity_is_always_a_ratio(
    parts: tuple[float, float], news: float | None, stress: float | None
) -> None:
    assert 0.0 <= complexity_score(*parts, news, stress) <= 1.0


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_component_outside_its_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        complexity_score(wrong, 0.5)


def test_a_long_position_in_profit_reads_positive() -> None:
    account = dict(
        zip(
            ACCOUNT_NAMES,
            account_features(
                capital=101_000.0,
                initial_capital=100_000.0,
                position=0.5,
                entry_price=100.0,
                last_price=103.0,
                unrealised_result=1_500.0,
                trailing_stop=101.0,
                atr=2.0,
            ),
            strict=True,
        )
    )

    assert account == pytest.approx(
        {
            "capital_change": 0.01,
            "position": 0.5,
            "entry_distance": 1.5,
            "unrealised_result": 1.5,
            "is_open": 1.0,
            "trailing_stop_distance": 1.0,
        }
    )


def test_a_short_position_mirrors_a_long_one() -> None:
    long_, short = (
        account_features(
            capital=1.0,
            initial_capital=1.0,
            position=sign * 1.0,
            entry_price=100.0,
            last_price=100.0 + sign * 3.0,
            unrealised_result=0.03,
            trailing_stop=100.0 - sign * 1.0,
            atr=2.0,
        )
        for sign in (1, -1)
    )

    np.testing.assert_allclose(long_[[2, 3, 4, 5]], short[[2, 3, 4, 5]])


def test_a_flat_account_has_neither_entry_nor_stop() -> None:
    flat = account_features(
        capital=1.0,
        initial_capital=1.0,
        position=0.0,
        entry_price=None,
        last_price=100.0,
        unrealised_result=0.0,
        trailing_stop=None,
        atr=0.0,
    )

    assert not flat.any()


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"position": 1.5}, "share of the allowed size"),
        ({"position": 0.5, "entry_price": None}, "needs its entry_price"),
        ({"atr": float("nan")}, "atr must be finite"),
        ({"last_price": 0.0}, "last_price must be positive, was 0.0"),
        ({"initial_capital": -1.0}, "initial_capital must be positive, was -1.0"),
    ],
)
def test_an_account_that_cannot_be_true_is_refused(
    change: dict[str, float | None], claim: str
) -> None:
    account: dict[str, float | None] = {
        "capital": 1.0,
        "initial_capital": 1.0,
        "position": 0.0,
        "entry_price": 100.0,
        "last_price": 100.0,
        "unrealised_result": 0.0,
        "trailing_stop": None,
        "atr": 1.0,
    }

    with pytest.raises(ValueError, match=claim):
        account_features(**(account | change))  # type: ignore[arg-type]  # wrong on purpose


def test_context_names_the_regime_once_and_marks_what_is_known() -> None:
    context = dict(
        zip(
            CONTEXT_NAMES,
            context_features(
                complexity=0.4, volatility=0.7, regime="trending", correlation=0.2, news=None
            ),
            strict=True,
        )
    )

    assert context == pytest.approx(
        {
            "complexity": 0.4,
            "volatility": 0.7,
            "is_trending": 1.0,
            "is_ranging": 0.0,
            "is_volatile": 0.0,
            "correlation": 0.2,
            "news": 0.0,
            "sources_known": 1 / 3,
        }
    )


def test_an_unknown_source_differs_from_a_quiet_one() -> None:
    unknown = context_features(complexity=0.4, volatility=0.7, regime="ranging")
    quiet = context_features(
        complexity=0.4, volatility=0.7, regime="ranging", correlation=0.0, news=0.0
    )

    assert not np.array_equal(unknown, quiet)


def test_an_unknown_regime_is_refused() -> None:
    with pytest.raises(ValueError, match="regime must be one of trending, ranging, volatile"):
        context_features(complexity=0.4, volatility=0.7, regime="calm")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("sign", "valid"),
    [
        (0, {Action.BUY_LONG, Action.SELL_SHORT, Action.HOLD}),
        (1, {Action.CLOSE_LONG, Action.HOLD}),
        (-1, {Action.CLOSE_SHORT, Action.HOLD}),
    ],
)
def test_only_actions_that_fit_the_position_are_valid(sign: int, valid: set[Action]) -> None:
    assert set(np.flatnonzero(valid_actions(sign))) == valid


def test_a_position_sign_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="position_sign must be -1, 0 or 1, was 2"):
        valid_actions(2)


def test_the_schema_digest_is_that_of_the_released_features() -> None:
    # A changed formula, name or constant makes trained weights worthless: train again, then this.
    assert FEATURE_SCHEMA_SHA256.startswith("24e1c7e1681b")
