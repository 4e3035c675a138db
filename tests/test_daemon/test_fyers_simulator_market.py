"""What the simulated broker lists, how its prices move, and the candles of both."""

from datetime import date, datetime, time
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.instruments import Instrument
from daemon.brokers.fyers_simulator import FyersSimulator, RateLimits, SimulatorSettings
from daemon.brokers.fyers_simulator.data_calls import history, master_csv, master_json
from daemon.brokers.fyers_simulator.instruments import IST, instant_ns, tick_of
from daemon.brokers.fyers_simulator.limits import RateLimiter
from daemon.brokers.fyers_simulator.listing import build_master
from daemon.brokers.fyers_simulator.options import smile, value
from daemon.brokers.fyers_simulator.orders import Refusal
from daemon.history import CandleTable, load_candles
from daemon.settings import load_sessions

CALENDAR = load_sessions()
SBIN, NIFTY, CALL = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX", "NSE:NIFTY26D0125000CE"
SECOND = 10**9


def a_simulator(**changes: object) -> FyersSimulator:
    return FyersSimulator(SimulatorSettings(calendar=CALENDAR, **changes))  # type: ignore[arg-type]


# What is listed.


@pytest.mark.parametrize(
    ("today", "expiry", "symbol"),
    [
        # A holiday on Tuesday the 24th moves the monthly expiry of November to Monday.
        (date(2026, 11, 20), date(2026, 11, 23), "NSE:NIFTY26NOV25000CE"),
        (date(2026, 11, 25), date(2026, 12, 1), "NSE:NIFTY26D0125000CE"),
        (date(2026, 10, 14), date(2026, 10, 19), "NSE:NIFTY26O1925000CE"),
        (date(2026, 7, 2), date(2026, 7, 7), "NSE:NIFTY2670725000CE"),
    ],
)
def test_options_expire_on_tuesday_or_the_trading_day_before(
    today: date, expiry: date, symbol: str
) -> None:
    master = build_master(today, CALENDAR)

    assert master.expiries(NIFTY)[0] == expiry
    assert master[symbol].expiry == expiry


def test_options_of_bse_expire_on_thursday() -> None:
    master = build_master(date(2026, 11, 25), CALENDAR)

    assert master.expiries("BSE:SENSEX-INDEX")[0] == date(2026, 11, 26)
    assert master["BSE:SENSEX26NOV82000PE"].fy_token.startswith("1211261126")


def test_lots_freezes_and_tokens_are_those_of_the_exchange() -> None:
    master = build_master(date(2026, 11, 25), CALENDAR)

    assert master[SBIN].fy_token == "10100000003045"
    assert master[SBIN].feed_topic == "sf|nse_cm|3045"
    assert master[NIFTY].feed_topic == "if|nse_cm|Nifty 50"
    assert (master[CALL].lot, master[CALL].freeze) == (65, 1800)
    assert master["NSE:BANKNIFTY26DECFUT"].tick == 20
    tokens = [contract.fy_token for contract in master]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("rupees", "tick"), [(200, 1), (815, 5), (1_400, 10), (7_000, 50), (15_000, 100), (30_000, 500)]
)
def test_the_tick_of_a_share_follows_its_price(rupees: int, tick: int) -> None:
    assert tick_of(rupees * 100) == tick


def test_both_forms_of_the_symbol_master_say_the_same() -> None:
    market = a_simulator().market

    rows = master_json(market, "NSE_FO")
    lines = [line.split(",") for line in master_csv(market, "NSE_FO").splitlines()]

    assert [line[9] for line in lines] == list(rows)
    for line in lines:
        row = rows[line[9]]
        assert [line[0], int(line[3]), float(line[4]), line[8], float(line[15]), line[16]] == [
            row["fyToken"],
            row["minLotSize"],
            row["tickSize"],
            row["expiryDate"],
            row["strikePrice"],
            row["optType"],
        ]
    assert rows[CALL]["qtyFreeze"] == "1800"
    assert rows[CALL]["lastUpdate"] == "2026-11-25"


# What options are worth.


@given(
    spot=st.floats(10_000, 90_000),
    moneyness=st.floats(0.85, 1.15),
    days=st.floats(0.01, 60),
    volatility=st.floats(0.08, 0.5),
)
def test_calls_and_puts_keep_their_parity_and_bounds(
    spot: float, moneyness: float, days: float, volatility: float
) -> None:
    strike, years = spot * moneyness, days / 365

    call = value(spot, strike, years, volatility, is_call=True)
    put = value(spot, strike, years, volatility, is_call=False)

    discounted = strike * np.exp(-0.065 * years)
    assert call.price - put.price == pytest.approx(spot - discounted, abs=1e-6 * spot)
    assert max(0.0, spot - discounted) - 1e-6 * spot <= call.price <= spot
    assert 0 <= call.delta <= 1
    assert put.delta == pytest.approx(call.delta - 1)
    assert 0.7 * volatility <= smile(spot, strike, years, volatility) <= 1.7 * volatility


def test_the_smile_leans_to_low_strikes_and_lifts_both_wings() -> None:
    strikes = (22_000, 24_000, 25_000, 26_000, 28_000)

    lowest, low, middle, high, highest = (smile(25_000, k, 7 / 365, 0.13) for k in strikes)

    assert lowest > low > middle
    assert low > high
    assert lowest > highest > middle


# How prices move.


async def test_a_derivative_follows_its_underlying() -> None:
    simulator = a_simulator()
    call, future = (simulator.market.quote(s) for s in (CALL, "NSE:NIFTY26DECFUT"))
    before = call.last, future.last

    await simulator.set_price(NIFTY, 25_200.0)

    assert call.last > before[0] + 80_00
    assert future.last == pytest.approx(before[1] + 200_00, abs=3_00)
    assert call.bid < call.ask


async def test_nothing_moves_while_the_exchange_is_closed() -> None:
    simulator = a_simulator(start=datetime(2026, 11, 25, 20, 0, tzinfo=IST))
    before = [quote.last for quote in simulator.market.live_quotes]

    await simulator.advance(300)

    assert [quote.last for quote in simulator.market.live_quotes] == before


async def test_a_new_day_begins_with_the_close_of_the_last() -> None:
    simulator = a_simulator(start=datetime(2026, 11, 25, 15, 39, 30, tzinfo=IST))
    await simulator.advance(30)
    quote = simulator.market.quote(NIFTY)
    close = quote.last

    await simulator.move_to(instant_ns(date(2026, 11, 26), time(9, 15, 1)), step_s=7_200)

    assert quote.previous_close == close
    assert quote.low <= quote.last <= quote.high


async def test_each_day_lists_its_contracts_under_numbers_of_their_own() -> None:
    simulator = a_simulator()
    before = len(simulator.market.master.by_symbol)
    await simulator.set_price(NIFTY, 25_900.0)

    await simulator.move_to(instant_ns(date(2026, 12, 2), time(9, 30)), step_s=7_200)

    master = simulator.market.master
    assert master.expiries(NIFTY)[0] == date(2026, 12, 8)
    assert CALL not in master.by_symbol
    assert master.expiries(NIFTY)[-3:] == [
        date(2026, 12, 22),
        date(2026, 12, 29),
        date(2027, 1, 26),
    ]
    assert len(master.by_symbol) > before
    topics = [contract.feed_topic for contract in master]
    assert len(set(topics)) == len(topics)


# Candles.


def test_history_ends_where_the_simulation_began_and_repeats_itself() -> None:
    query = {
        "symbol": NIFTY,
        "resolution": "1",
        "date_format": "1",
        "range_from": "2026-11-20",
        "range_to": "2026-11-25",
    }

    candles = history(a_simulator(seed=4).market, query)["candles"]

    assert candles == history(a_simulator(seed=4).market, query)["candles"]
    assert len(candles) == 385 + 385 + 45  # Friday, Monday, and Wednesday until 10:00
    for before, after in pairwise(candles):
        assert after[0] > before[0]
        assert after[1] == pytest.approx(before[4], abs=0.06)  # no gaps within this walk
        assert after[3] <= min(after[1], after[4]) <= max(after[1], after[4]) <= after[2]
    assert candles[-1][4] == 25_000.0


async def test_candles_of_now_come_from_what_was_traded() -> None:
    simulator = a_simulator(seed=4)
    await simulator.advance(150)
    quote = simulator.market.quote(NIFTY)

    candles = history(
        simulator.market,
        {
            "symbol": NIFTY,
            "resolution": "1",
            "date_format": "0",
            "range_from": str(simulator.now_ns // SECOND - 150),
            "range_to": str(simulator.now_ns // SECOND),
        },
    )["candles"]

    assert [candle[0] % 60 for candle in candles] == [0, 0, 0]
    assert candles[-1][4] == quote.last / 100
    assert max(candle[2] for candle in candles) == quote.high / 100


def test_five_minutes_are_made_of_single_ones_and_days_of_all() -> None:
    market = a_simulator().market
    query = {"symbol": SBIN, "date_format": "1", "range_from": "2026-11-23"}
    query["range_to"] = "2026-11-23"

    single, five, day = (
        history(market, query | {"resolution": resolution})["candles"]
        for resolution in ("1", "5", "D")
    )

    assert sum(candle[5] for candle in single) == sum(c[5] for c in five) == day[0][5]
    assert five[0][1:5] == [
        single[0][1],
        max(candle[2] for candle in single[:5]),
        min(candle[3] for candle in single[:5]),
        single[4][4],
    ]
    assert len(day) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"symbol": "NSE:NOPE-EQ"},
        {"resolution": "7"},
        {"range_from": "2026-02-30"},
        {"range_from": "2026-01-01"},
        {"range_from": "2026-11-26"},
    ],
)
def test_history_refuses_what_it_cannot_answer(changes: dict[str, str]) -> None:
    query = {
        "symbol": SBIN,
        "resolution": "1",
        "date_format": "1",
        "range_from": "2026-11-23",
        "range_to": "2026-11-25",
    }

    with pytest.raises(Refusal):
        history(a_simulator().market, query | changes)


# Candles that are played.


@pytest.fixture
def played(tmp_path: Path) -> tuple[Instrument, CandleTable]:
    """Three five-minute candles of an instrument with five decimals."""
    path = tmp_path / "EURUSD_5.csv"
    rows = ["time,open,high,low,close,volume"]
    for minute, prices in ((0, "1.1,1.2,1.05,1.15"), (5, "1.15,1.16,1.14,1.15001")):
        rows.append(f"2026-11-25T10:{minute:02d}:00+05:30,{prices},400")
    rows.append("2026-11-25T10:10:00+05:30,1.15001,1.3,1.1,1.25,400")
    path.write_text("\n".join(rows) + "\n")
    instrument = Instrument(
        symbol="EURUSD",
        name="Euro / US dollar",
        exchange_symbol="FX:EURUSD",
        kind="stock",
        lot_size=1000,
        tick_size=Decimal("0.00001"),
        session="FX",
    )
    return instrument, load_candles(path)


async def test_played_candles_are_the_market(played: tuple[Instrument, CandleTable]) -> None:
    simulator = a_simulator(played=(played,))
    quote = simulator.market.quote("FX:EURUSD")
    seen = {quote.last}
    simulator.exchange.listeners.clear()

    for _ in range(15):
        await simulator.advance(60, step_s=60)
        seen.add(quote.last)

    assert (quote.high, quote.low, quote.last) == (130_000, 105_000, 125_000)
    assert quote.volume == 1_200
    candles = history(
        simulator.market,
        {
            "symbol": "FX:EURUSD",
            "resolution": "5",
            "date_format": "0",
            "range_from": str(played[1].open_ns[0] // SECOND),
            "range_to": str(simulator.now_ns // SECOND),
        },
    )["candles"]
    assert [candle[1:5] for candle in candles] == [
        [1.1, 1.2, 1.05, 1.15],
        [1.15, 1.16, 1.14, 1.15001],
        [1.15001, 1.3, 1.1, 1.25],
    ]


async def test_the_future_of_played_candles_is_not_told(
    played: tuple[Instrument, CandleTable],
) -> None:
    simulator = a_simulator(played=(played,))
    await simulator.advance(60)

    candles = history(
        simulator.market,
        {
            "symbol": "FX:EURUSD",
            "resolution": "5",
            "date_format": "0",
            "range_from": str(played[1].open_ns[0] // SECOND),
            "range_to": str(simulator.now_ns // SECOND + 3_600),
        },
    )["candles"]

    assert [candle[1:5] for candle in candles] == [[1.1, 1.1, 1.1, 1.1]]


async def test_an_order_meets_every_point_of_played_candles(
    played: tuple[Instrument, CandleTable],
) -> None:
    simulator = a_simulator(played=(played,))
    await simulator.advance(1)
    order = simulator.exchange.place(
        {
            "symbol": "FX:EURUSD", "qty": 1000, "type": 1, "side": -1,
            "productType": "INTRADAY", "limitPrice": 1.19, "stopPrice": 0, "validity": "DAY",
            "disclosedQty": 0, "offlineOrder": False,
        }
    )  # fmt: skip

    await simulator.advance(600, step_s=600)  # the high of 1.2 lies within this one step

    assert order.filled == 1000
    assert order.average / 100_000 == pytest.approx(1.2, abs=0.0001)


# Limits.


def test_too_many_breaches_of_the_minute_block_the_user_for_the_day() -> None:
    now_ns = 0
    limits = RateLimits(per_second=1_000, per_minute=5, minute_breaches=3)
    limiter = RateLimiter(limits, lambda: now_ns)

    for minute in range(4):
        now_ns = (2 * minute) * 60 * SECOND
        for _ in range(6):
            verdict = limiter.admit()
        assert verdict is not None
        assert limiter.is_blocked is (minute == 3)

    now_ns += 600 * SECOND
    refused = limiter.admit()
    assert refused is not None
    assert "day" in refused.reason
    limiter.new_day()
    assert limiter.admit() is None
