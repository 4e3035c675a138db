"""Feature frame: the contract's 53 columns, in a batch and bar by bar, beside TA-Lib."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import talib
from feature_builders import sessions
from numpy.typing import NDArray

from daemon.demo_data import demo_candles
from daemon.feature_frame import FRAME_COLUMNS, WARMUP_ROWS, exact_frame, feature_frame
from daemon.frame_stream import FrameStream, rounded_row
from daemon.history import load_candles

FloatArray = NDArray[np.float64]
SHARED = os.environ.get("HRM_TRADER_SHARED_DATA")


@dataclass(frozen=True)
class Bars:
    open_ns: NDArray[np.int64]
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray


def some_bars(days: int = 6) -> Bars:
    """Make days of five-minute candles on a grid of 0.05, as an index is quoted."""
    columns = sessions(days)
    prices = {n: np.round(columns[n] * 4400) / 20 for n in ("open", "high", "low", "close")}
    return Bars(open_ns=columns["close_ns"] - 300_000_000_000, **prices)


def embedded_bars() -> Bars:
    return of_file(demo_candles().path, 3000)


def of_file(path: Path, count: int) -> Bars:
    table = load_candles(path)
    names = ("open_ns", "open", "high", "low", "close")
    return Bars(**{name: getattr(table, name)[-count:].copy() for name in names})


def streamed(bars: Bars, stream: FrameStream | None = None) -> list[dict[str, float]]:
    stream = FrameStream() if stream is None else stream
    columns = (bars.open_ns, bars.open, bars.high, bars.low, bars.close)
    return [stream.add(*bar) for bar in zip(*(c.tolist() for c in columns), strict=True)]


def test_the_columns_are_the_contracts() -> None:
    frame = feature_frame(some_bars())

    assert len(FRAME_COLUMNS) == 53
    assert tuple(frame.columns) == FRAME_COLUMNS
    assert frame.index.name == "datetime_readable"
    assert frame["datetime_epoch"].dtype == np.int64


def test_the_first_199_rows_are_dropped_and_times_are_indian() -> None:
    bars = some_bars()

    frame = feature_frame(bars)

    assert len(frame) == len(bars.close) - WARMUP_ROWS
    assert frame["datetime_epoch"].iloc[0] == bars.open_ns[WARMUP_ROWS] // 10**9
    assert frame.index[0] == pd.Timestamp("2024-03-20 13:20")  # the 50th bar of the third session


def test_values_are_rounded_to_two_decimals() -> None:
    values = feature_frame(some_bars()).to_numpy()

    np.testing.assert_array_equal(values, np.round(values, 2))


def test_too_short_a_history_gives_an_empty_frame_with_its_columns() -> None:
    frame = feature_frame(some_bars(2))

    assert frame.empty
    assert tuple(frame.columns) == FRAME_COLUMNS


@pytest.mark.parametrize("bars", [some_bars(), embedded_bars()], ids=["index", "currency"])
def test_bar_by_bar_and_all_at_once_agree_and_round_alike(bars: Bars) -> None:
    exact, rows = exact_frame(bars), streamed(bars)

    row_by_row = pd.DataFrame(rows, index=exact.index)
    np.testing.assert_allclose(row_by_row, exact, rtol=0, atol=1e-9)
    rounded = pd.DataFrame([rounded_row(row) for row in rows], index=exact.index).dropna()
    np.testing.assert_array_equal(rounded.to_numpy(), feature_frame(bars).to_numpy())


@pytest.mark.skipif(SHARED is None, reason="HRM_TRADER_SHARED_DATA names no folder")
@pytest.mark.parametrize("name", ["bank_nifty_5m.parquet", "sensex_5m.parquet"])
def test_they_agree_on_real_index_bars(name: str) -> None:
    bars = of_file(Path(str(SHARED)) / name, 4000)

    rounded = pd.DataFrame(map(rounded_row, streamed(bars))).dropna()

    np.testing.assert_array_equal(rounded.to_numpy(), feature_frame(bars).to_numpy())


def test_indicators_are_those_of_the_reference_library() -> None:
    bars = embedded_bars()
    frame = exact_frame(bars)
    high, low, close = bars.high, bars.low, bars.close
    macd, signal, histogram = talib.MACD(close, 12, 26, 9)
    fast, slow = talib.STOCH(high, low, close, fastk_period=14, slowk_period=3, slowd_period=3)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    expected = {
        "macd": macd,
        "macd_signal": signal,
        "macd_histogram": histogram,
        "rsi_14": talib.RSI(close, 14),
        "rsi_21": talib.RSI(close, 21),
        "stoch_k": fast,
        "stoch_d": slow,
        "williams_r": talib.WILLR(high, low, close, 14),
        "cci": talib.CCI(high, low, close, 14),
        "adx": talib.ADX(high, low, close, 14),
        "di_plus": talib.PLUS_DI(high, low, close, 14),
        "di_minus": talib.MINUS_DI(high, low, close, 14),
        "momentum_10": talib.MOM(close, 10),
        "roc_10": talib.ROC(close, 10),
        "trix": talib.TRIX(close, 30),
        "atr": talib.ATR(high, low, close, 14),
        "bb_upper": upper,
        "bb_middle": middle,
        "bb_lower": lower,
        "trend_slope": talib.LINEARREG_SLOPE(close, 20),
        **{f"sma_{n}": talib.SMA(close, n) for n in (5, 10, 20, 50, 100, 200)},
        **{f"ema_{n}": talib.EMA(close, n) for n in (5, 10, 20, 50, 100, 200)},
    }

    for name, values in expected.items():
        # From the first row of the frame on: MACD's two averages begin together in the library.
        ours, theirs = frame[name].to_numpy()[WARMUP_ROWS:], values[WARMUP_ROWS:]
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7, err_msg=name)


def test_derived_columns_by_hand() -> None:
    bars = some_bars()
    frame = exact_frame(bars)
    last = frame.iloc[-1]
    window = bars.close[-20:]

    spread = last["bb_upper"] - last["bb_lower"]
    assert last["bb_width"] == pytest.approx(100 * spread / last["bb_middle"])
    assert last["bb_position"] == pytest.approx(100 * (last["close"] - last["bb_lower"]) / spread)
    assert last["volatility_20"] == pytest.approx(100 * window.std(ddof=1) / window.mean())
    steps = np.arange(20)
    assert last["trend_strength"] == pytest.approx(np.corrcoef(steps, window)[0, 1] ** 2)
    assert last["trend_direction"] == np.sign(last["trend_slope"])
    assert last["hl_range"] == pytest.approx(100 * (last["high"] - last["low"]) / last["close"])
    assert last["price_change"] == pytest.approx(100 * (window[-1] / window[-2] - 1))
    assert last["sma_5_20_cross"] == (1.0 if last["sma_5"] > last["sma_20"] else -1.0)
    assert last["price_vs_ema_20"] == pytest.approx(100 * (last["close"] / last["ema_20"] - 1))


def test_where_nothing_moved_both_ways_drop_the_row() -> None:
    bars = some_bars()
    flat = {name: getattr(bars, name).copy() for name in ("open", "high", "low", "close")}
    for values in flat.values():
        values[300:330] = flat["close"][299]
    still = replace(bars, **flat)

    rounded = [rounded_row(row) for row in streamed(still)]

    kept = pd.DataFrame(rounded).dropna()
    np.testing.assert_array_equal(kept.to_numpy(), feature_frame(still).to_numpy())
    assert math.isnan(rounded[325]["stoch_k"])
    assert len(kept) < len(bars.close) - WARMUP_ROWS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("still_bars", [15, 100, 500])
def test_a_price_that_stands_still_from_the_start_is_unknown_in_both_ways(still_bars: int) -> None:
    bars = some_bars(7)
    prices = {name: getattr(bars, name).copy() for name in ("open", "high", "low", "close")}
    for values in prices.values():
        values[:still_bars] = prices["close"][0]
    still = replace(bars, **prices)

    exact, rows = exact_frame(still), pd.DataFrame(streamed(still))

    np.testing.assert_allclose(rows.to_numpy(), exact.to_numpy(), rtol=0, atol=1e-9)
    assert math.isnan(rows["di_plus"][14])
    assert not math.isnan(rows["di_plus"][len(rows) - 1])


@pytest.mark.parametrize("cut", [0, 1, 14, 150, 260])
def test_a_restored_frame_stream_goes_on_to_the_last_bit(cut: int) -> None:
    bars = some_bars(5)
    names = ("open_ns", "open", "high", "low", "close")
    early, late = (
        Bars(**{name: getattr(bars, name)[where] for name in names})
        for where in (slice(cut), slice(cut, None))
    )
    first = FrameStream()
    streamed(early, first)

    second = FrameStream.restored(first.snapshot())

    whole = pd.DataFrame(streamed(bars)[cut:])
    np.testing.assert_array_equal(pd.DataFrame(streamed(late, second)).to_numpy(), whole.to_numpy())


def test_something_else_is_no_snapshot_of_a_frame_stream() -> None:
    with pytest.raises(ValueError, match="no snapshot of a frame stream"):
        FrameStream.restored({"series": {}})
