"""How often the backend asks the broker: at a pace, and for the same candles once a bar."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from backend_server import USER

from backend.call_pace import LONGEST_WAIT_S, PER_MINUTE, PER_SECOND, CallPace
from backend.fyers_accounts import FyersAccounts
from daemon.brokers.fyers.ledger import CallBudget
from daemon.brokers.fyers.rest import simulated
from daemon.brokers.fyers_simulator.limits import RateLimits
from daemon.errors import TooManyCalls

NOW_S = 1_772_424_000  # a bar of five minutes begins
CANDLE = [NOW_S, 1.0, 2.0, 0.5, 1.5, 10.0]


@asynccontextmanager
async def a_broker(asked: list[str]) -> AsyncIterator[FyersAccounts]:
    """Yield the accounts of a broker that notes which candles it is asked for."""

    async def history(request: web.Request) -> web.Response:
        asked.append(request.query["symbol"])
        return web.json_response({"s": "ok", "candles": [CANDLE]})

    application = web.Application()
    application.router.add_get("/{path:.*}", history)
    clock_s = iter(range(0, 10_000, 60))
    async with TestServer(application) as server:
        url = str(server.make_url("")).rstrip("/")
        accounts = FyersAccounts(simulated(url), CallPace(lambda: float(next(clock_s))))
        yield accounts
        await accounts.close()


async def test_candles_are_asked_for_once_a_bar_whoever_asks() -> None:
    asked: list[str] = []
    async with a_broker(asked) as accounts:
        answers = [
            await accounts.history(USER, symbol, timeframe, now_s - 86_400, now_s)
            for symbol, timeframe, now_s in (
                ("A", "5", NOW_S),
                ("A", "5", NOW_S + 299),
                ("B", "5", NOW_S + 299),
                ("A", "1", NOW_S + 299),
                ("A", "5", NOW_S + 300),
                ("A", "D", NOW_S + 300),
                ("A", "D", NOW_S + 3_600),  # today's grows: it is not kept for a day
            )
        ]

    assert asked == ["A", "B", "A", "A", "A", "A"]
    assert {len(answer) for answer in answers} == {1}


def test_daemon_and_backend_together_stay_below_the_brokers_limits() -> None:
    ours, brokers = CallBudget(), RateLimits()

    assert ours.per_second + PER_SECOND < brokers.per_second
    assert ours.per_minute + PER_MINUTE < brokers.per_minute


def test_calls_wait_for_their_turn_and_are_refused_where_it_is_far_off() -> None:
    now_s = [0.0]
    pace = CallPace(lambda: now_s[0])

    waits = [pace.turn() for _ in range(6)]
    with pytest.raises(TooManyCalls, match="ask again in 6 s"):
        pace.turn()
    now_s[0] = 6.0

    assert waits == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert waits[-1] <= LONGEST_WAIT_S
    assert pace.turn() == 0.0


def test_a_minute_has_no_more_calls_than_its_share() -> None:
    now_s = [0.0]
    pace = CallPace(lambda: now_s[0])
    for _ in range(PER_MINUTE):
        assert pace.turn() == 0.0
        now_s[0] += 1.0

    with pytest.raises(TooManyCalls, match="ask again in 20 s"):
        pace.turn()
