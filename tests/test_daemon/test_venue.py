"""What runs beside a session for its venue: listeners, the socket feed, the teller of alerts."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from builders import SECOND_NS, a_tick

from actors.messages import Alert, Tick, TimeEvent
from daemon.alert_teller import AlertTeller
from daemon.clock import SimulatedClock
from daemon.errors import BusError
from daemon.socket_feed import SocketFeed
from daemon.venue import Listener

WAIT_S = 20.0


async def for_ever() -> None:
    await asyncio.Event().wait()


async def failing() -> None:
    raise BusError("gone")


async def test_a_listener_ends_when_it_is_stopped() -> None:
    listener = Listener("listener", for_ever)
    running = asyncio.create_task(listener.run())
    await asyncio.sleep(0)

    listener.stop()

    await asyncio.wait_for(running, WAIT_S)


async def test_a_listener_whose_work_fails_fails() -> None:
    with pytest.raises(BusError, match="gone"):
        await Listener("listener", failing).run()


async def test_a_cancelled_listener_leaves_no_work_behind() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await for_ever()
        finally:
            ended.set()

    running = asyncio.create_task(Listener("listener", work).run())
    async with asyncio.timeout(WAIT_S):
        await begun.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert ended.is_set()


def refuse_alert(alert: Alert) -> None:
    raise AssertionError(alert.text)


async def test_a_feed_leaves_out_what_a_new_connection_repeats() -> None:
    first, second = a_tick("100", SECOND_NS), a_tick("101", 2 * SECOND_NS)

    async def ticks() -> AsyncIterator[Tick]:
        for tick in (first, second, second):  # the last price comes again with a snapshot
            yield tick

    feed = SocketFeed(ticks, SimulatedClock(SECOND_NS), refuse_alert)
    await feed.read()

    assert feed.arrived() == [first, second]
    assert feed.arrived() == []


async def test_a_feed_tells_the_time_between_its_ticks() -> None:
    clock = SimulatedClock(5 * SECOND_NS // 2)
    feed = SocketFeed(for_ever, clock, refuse_alert)  # type: ignore[arg-type]  # it has no ticks
    telling = asyncio.create_task(feed.tell_time(clock))

    async with asyncio.timeout(WAIT_S):
        events = feed.events()
        told = [await anext(events) for _ in range(2)]
    telling.cancel()

    assert told == [
        TimeEvent(now_ns=2 * SECOND_NS, wall_ns=5 * SECOND_NS // 2),  # at once
        TimeEvent(now_ns=3 * SECOND_NS, wall_ns=3 * SECOND_NS),
    ]


async def test_an_alert_is_told_again_until_the_bus_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.alert_teller._RETRY_S", 0.001)
    told: list[Alert] = []
    failures = [BusError("gone"), BusError("gone")]

    async def announce(alert: Alert) -> None:
        if failures:
            raise failures.pop()
        told.append(alert)

    teller = AlertTeller(announce)
    alert = Alert(
        severity="critical", text="no data", runbook="Feed refused", at_ns=1, source="data_socket"
    )
    teller.tell(alert)
    telling = asyncio.create_task(teller.keep_telling())
    async with asyncio.timeout(WAIT_S):
        while not told:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.001)
    telling.cancel()

    assert told == [alert]
