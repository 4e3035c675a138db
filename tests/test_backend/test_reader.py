"""The reader over a line that breaks: what came meanwhile is told once, and then all goes on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import pytest
from backend_server import check_frame
from builders import OPEN_NS, a_bar, a_decision, a_fill, a_position, a_session, a_tick, an_order
from command_line import CONFIG
from recorded_session import session_plan, write_candles

import backend.reader
from actors.messages import Alert, AnyMessage, RequestAnswer
from backend.hub import Hub, Patience, Ready, SocketClient
from backend.place import Place
from backend.projection import Trade
from backend.reader import BusReader
from daemon.bus import Entry, Envelope, id_key
from daemon.errors import BusError
from daemon.session_files import load_markets
from daemon.settings import load_instruments

USER = "FA1"
NOT_CLOSED = "Failed to close position for Nifty. Please check manually."
CALL_FOR_HELP = Alert(severity="critical", text=NOT_CLOSED, runbook="", at_ns=0, instrument="Nifty")


class World:
    """The streams of a bus, which the reader may lose sight of."""

    def __init__(self) -> None:
        self.is_lost = False
        self.entries: list[Entry] = []
        self.now_ns = 0
        self.passed_s = 0.0
        self.soon: list[AnyMessage] = []  # what comes right after a read that finds something

    def publish(self, *messages: AnyMessage) -> None:
        for message in messages:
            envelope = Envelope(
                source="test", sequence=0, cause="", published_ns=0, cause_published_ns=0,
                origin_published_ns=0, message=message,
            )  # fmt: skip
            self.entries.append(Entry(message.stream, f"1-{len(self.entries) + 1}", envelope))

    def after(self, stream: str, entry_id: str) -> list[Entry]:
        if self.is_lost:
            raise BusError("the server is gone")
        found = [entry for entry in self.entries if entry.stream == stream]
        return [entry for entry in found if id_key(entry.id) > id_key(entry_id)]


class KnownBus:
    """A bus that reads in a World."""

    world: World

    def __init__(self, url: str, prefix: str) -> None: ...

    async def entries(self, stream: str) -> list[Entry]:
        return self.world.after(stream, "0-0")

    async def latest(self, stream: str) -> Mapping[str, Envelope]:
        return {entry.id: entry.envelope for entry in self.world.after(stream, "0-0")[-1:]}

    async def close(self) -> None: ...


class KnownTail:
    """A tail that reads in a World."""

    world: World

    def __init__(self, after: dict[str, str]) -> None:
        self.after = after

    @classmethod
    async def open(cls, url: str, prefix: str, streams: Sequence[str]) -> Self:
        newest = {name: [entry.id for entry in cls.world.after(name, "0-0")] for name in streams}
        return cls({name: ids[-1] if ids else "0-0" for name, ids in newest.items()})

    async def read(self, limit: int, block_ms: int) -> list[Entry]:
        await asyncio.sleep(0.001)
        found = [
            entry for name, after in self.after.items() for entry in self.world.after(name, after)
        ]
        found.sort(key=lambda entry: id_key(entry.id))
        for entry in found:
            self.after[entry.stream] = entry.id
        if found:
            soon, self.world.soon = self.world.soon, []
            self.world.publish(*soon)
        return found

    async def close(self) -> None: ...


class HeardLine:
    """A line that notes what goes out."""

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.is_ready = True
        self.frames: list[dict[str, Any]] = []
        self.writes: list[int] = []  # frames in each

    def write(self, messages: Sequence[Ready]) -> None:
        self.frames += [json.loads(message.text) for message in messages]
        self.writes.append(len(messages))

    def forget(self) -> None:
        self.frames.clear()
        self.writes.clear()

    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.frames]


class Followed:
    """A reader that follows a World, with a user's socket."""

    def __init__(self, place: Place, world: World) -> None:
        self.world = world
        self.line = HeardLine()
        self.answers: list[RequestAnswer] = []
        self.trades: list[Trade] = []
        hub = Hub(3)
        hub.attach(
            SocketClient(
                USER, self.line, patience=Patience(100, 60.0), monotonic_s=lambda: 0.0,
                on_end=lambda: None,
            )
        )  # fmt: skip
        self.reader = BusReader(
            lambda: place,
            hub,
            wall_ns=lambda: world.now_ns,
            monotonic_s=lambda: world.passed_s,
            on_answer=self.answers.append,
            on_trades=self._note,
        )

    def _note(self, _: Place, trades: Any) -> None:
        self.trades = list(trades)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():  # noqa: ASYNC110  another task's doing
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Lose the bus while something happens; return when the reader has it again."""
        self.world.is_lost = True
        await self.until(lambda: not self.reader._is_connected)
        self.line.forget()
        yield
        self.world.is_lost = False
        await self.until(lambda: self.reader._is_connected)


@pytest.fixture
async def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Followed]:
    catalogue = load_instruments(CONFIG, {}).catalogue
    plan = session_plan(tmp_path, load_markets([write_candles(tmp_path)], [], catalogue))
    place = Place(tmp_path, tmp_path / "sessions" / plan.session, plan, "redis://nowhere")
    world = World()
    for name, fake in (("RedisBus", KnownBus), ("RedisTail", KnownTail)):
        monkeypatch.setattr(fake, "world", world, raising=False)
        monkeypatch.setattr(backend.reader, name, fake)
    found = Followed(place, world)
    world.publish(a_session(), a_tick("22000"))
    running = asyncio.create_task(found.reader.run())
    await found.until(lambda: found.reader._is_connected)
    yield found
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


ENTERED = a_position(75, average_price=Decimal(22000), decision_id="d1", updated_ns=OPEN_NS)
LEAVING = an_order(75, side="sell", purpose="exit", client_order_id="x1")
LEFT: list[AnyMessage] = [
    LEAVING,
    a_fill(LEAVING, "21990"),
    a_position(0, realised_pnl=Decimal(-810), round_trips=1, decision_id="d1"),
]


async def test_a_close_inside_an_outage_is_told_with_its_marker(followed: Followed) -> None:
    followed.world.publish(ENTERED)
    await followed.until(lambda: "trade_executed" in followed.line.kinds())

    async with followed.outage():
        followed.world.publish(*LEFT)

    assert followed.line.kinds() == ["trade_executed", "position_update", "status"]
    marker, update, status = followed.line.frames
    assert (marker["action"], marker["pnl"], marker["price"]) == ("CLOSE_LONG", -810.0, 21990.0)
    assert (update["data"]["isOpen"], update["data"]["pnl"]) == (False, -810.0)
    assert status["data"]["closed_positions"] == 1
    assert [trade.pnl for trade in followed.trades] == [-810.0]
    for frame in followed.line.frames:
        check_frame("/ws/live/{user_id}", frame)


async def test_a_whole_trade_inside_an_outage_is_told_and_nothing_from_before(
    followed: Followed,
) -> None:
    followed.world.publish(ENTERED, *LEFT)
    await followed.until(lambda: followed.line.kinds().count("trade_executed") == 2)

    async with followed.outage():
        followed.world.publish(a_position(75, round_trips=1, decision_id="d2"))
        followed.world.publish(a_position(0, round_trips=2, decision_id="d2"))

    markers = [frame for frame in followed.line.frames if frame["type"] == "trade_executed"]
    assert [marker["trade_info"]["decision_id"] for marker in markers] == ["d2", "d2"]
    assert len(followed.trades) == 2


async def test_a_stop_inside_an_outage_comes_behind_what_closed_before_it(
    followed: Followed,
) -> None:
    followed.world.publish(ENTERED)
    await followed.until(lambda: "trade_executed" in followed.line.kinds())

    async with followed.outage():
        followed.world.publish(*LEFT, a_session(status="stopped"))

    assert followed.line.kinds() == ["trade_executed", "position_update", "stopped", "status"]
    assert followed.line.frames[-1]["data"]["is_active"] is False


async def test_an_answer_and_a_call_for_help_inside_an_outage_arrive(followed: Followed) -> None:
    answer = RequestAnswer(
        request_id="r1", user_id=USER, accepted=True, reason="started", answered_ns=0
    )

    async with followed.outage():
        followed.world.publish(CALL_FOR_HELP, answer)
    told = [followed.line.kinds()]
    async with followed.outage():
        pass
    told.append(followed.line.kinds())

    assert told == [["error", "status"], ["status"]]
    assert followed.answers == [answer]


async def test_after_an_outage_without_events_prices_and_the_time_are_known_still(
    followed: Followed,
) -> None:
    followed.world.publish(ENTERED, a_tick("22010"))
    await followed.until(lambda: "tick" in followed.line.kinds())

    async with followed.outage():
        pass

    (status,) = followed.line.frames
    assert status["data"]["current_price"] == 22010.0
    assert status["data"]["current_pnl"] == 750.0


@pytest.mark.parametrize(("age_ms", "writes"), [(0, [3]), (5, [3]), (6, [2, 1]), (-1000, [3])])
async def test_what_follows_a_fresh_event_goes_out_with_it(
    followed: Followed, age_ms: int, writes: list[int]
) -> None:
    followed.line.forget()
    followed.world.now_ns = age_ms * 1_000_000
    followed.world.soon = [CALL_FOR_HELP]

    followed.world.publish(ENTERED)
    await followed.until(lambda: "error" in followed.line.kinds())

    assert followed.line.kinds() == ["trade_executed", "position_update", "error"]
    assert followed.line.writes == writes


async def test_a_close_right_before_the_stop_is_told(followed: Followed) -> None:
    followed.line.forget()
    followed.world.publish(ENTERED, *LEFT, a_session(status="stopped"), CALL_FOR_HELP)
    await followed.until(lambda: "stopped" in followed.line.kinds())

    of_trades = ["trade_executed", "position_update"] * 2
    assert followed.line.kinds() == [*of_trades, "stopped"]


async def test_a_closed_bar_waits_for_the_decision_on_it_but_not_for_ever(
    followed: Followed,
) -> None:
    followed.line.forget()

    followed.world.publish(a_bar(), ENTERED)
    await asyncio.sleep(0.1)
    followed.world.publish(a_decision(instrument="Bank_Nifty"))
    await asyncio.sleep(0.1)
    assert followed.line.kinds() == []
    followed.world.publish(a_decision())
    await followed.until(lambda: "stats_update" in followed.line.kinds())
    assert followed.line.kinds()[:2] == ["trade_executed", "position_update"]

    followed.line.forget()
    followed.world.publish(a_bar(), CALL_FOR_HELP)
    await asyncio.sleep(0.1)
    assert followed.line.kinds() == []
    followed.world.passed_s = 0.012
    await followed.until(lambda: followed.line.kinds() == ["error"])
