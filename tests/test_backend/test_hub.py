"""Queues of sockets: who is written to at once, what a slow client gets, who is dropped."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.hub import Hub, Patience, Ready, SocketClient, ready, ready_text
from backend.lines import SendingLine

PATIENCE = Patience(messages=20, seconds=10.0)


class HeldLine:
    """A line that takes what it has room for."""

    def __init__(self, room: int) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.room = room
        self.taken: list[str] = []

    @property
    def is_ready(self) -> bool:
        return self.room > 0

    def write(self, messages: Sequence[Ready]) -> None:
        assert self.room > 0
        self.room -= len(messages)
        self.taken += [message.text for message in messages]

    def make_room(self, room: int) -> None:
        self.room += room
        self.on_ready()


class World:
    """A client on a held line, with a clock."""

    def __init__(self, room: int = 0) -> None:
        self.now_s = 0.0
        self.ends = 0
        self.line = HeldLine(room)
        self.client = SocketClient(
            "u", self.line, patience=PATIENCE, monotonic_s=lambda: self.now_s, on_end=self._note
        )

    def _note(self) -> None:
        self.ends += 1

    def offer(self, text: str, latest_of: str = "") -> None:
        self.client.offer(ready_text(text)._replace(latest_of=latest_of))


def test_a_client_that_keeps_up_is_written_to_at_once() -> None:
    world = World(room=2)

    world.offer("tick 1", latest_of="tick")
    world.offer("tick 2", latest_of="tick")

    assert world.line.taken == ["tick 1", "tick 2"]


def test_what_comes_together_goes_out_together_or_waits_as_if_it_had_come_singly() -> None:
    quick, slow = World(room=1), World()
    batch = [
        ready_text(text)._replace(latest_of="" if text == "trade" else "tick")
        for text in ("tick 1", "trade", "tick 2", "tick 3")
    ]

    for world in (quick, slow):
        world.client.offer(*batch)
    slow.line.make_room(10)

    assert quick.line.taken == ["tick 1", "trade", "tick 2", "tick 3"]
    assert slow.line.taken == ["tick 1", "trade", "tick 3"]


def test_a_slow_client_gets_the_newest_tick_and_every_trade() -> None:
    world = World()
    for number in range(1000):
        world.offer(f"tick {number}", latest_of="tick:Nifty")
        if number % 500 == 499:
            world.offer(f"trade {number}")

    world.line.make_room(100)

    assert world.line.taken == ["tick 499", "trade 499", "tick 999", "trade 999"]
    assert world.client.replaced == 998


def test_a_client_too_far_behind_is_ended_once_and_gets_nothing_more() -> None:
    world = World()
    for number in range(PATIENCE.messages + 2):
        world.offer(f"trade {number}")

    world.line.make_room(100)

    assert world.client.end_reason.startswith("too slow")
    assert (world.ends, world.line.taken) == (1, [])


def test_a_client_that_takes_nothing_for_too_long_is_ended_though_its_queue_is_short() -> None:
    world = World()
    world.offer("tick 1", latest_of="tick")

    world.now_s = PATIENCE.seconds - 0.1
    world.offer("tick 2", latest_of="tick")
    assert not world.client.end_reason
    world.now_s = PATIENCE.seconds
    world.offer("tick 3", latest_of="tick")

    assert world.client.end_reason.startswith("too slow")


def test_taking_one_message_gives_a_client_time_again() -> None:
    world = World()
    world.offer("trade 1")
    world.offer("trade 2")
    world.now_s = PATIENCE.seconds - 1
    world.line.make_room(1)

    world.now_s += PATIENCE.seconds - 1
    world.offer("trade 3")

    assert not world.client.end_reason


ACTIONS = st.one_of(
    st.tuples(st.just("tick"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("trade"), st.just("")),
    st.tuples(st.just("room"), st.integers(1, 3)),
)


@given(st.lists(ACTIONS, max_size=PATIENCE.messages))
def test_whatever_the_pace_trades_come_all_and_nothing_overtakes_them(
    actions: list[tuple[str, str | int]],
) -> None:
    world = World()
    offered: list[str] = []
    for number, (kind, value) in enumerate(actions):
        if kind == "room":
            world.line.make_room(int(value))
            continue
        offered.append(f"{kind} {value} {number}")
        world.offer(offered[-1], latest_of=f"tick:{value}" if kind == "tick" else "")
    world.line.make_room(1000)

    taken = world.line.taken
    places = [offered.index(text) for text in taken]
    trades = [text for text in offered if text.startswith("trade")]
    assert [text for text in taken if text.startswith("trade")] == trades
    # A trade stands behind what was offered before it and before what was offered after it.
    for at, text in enumerate(taken):
        if text.startswith("trade"):
            assert max(places[: at + 1]) == places[at] == min(places[at:])
    for name in ("a", "b"):
        newest = [text for text in offered if text.startswith(f"tick {name}")][-1:]
        assert not newest or newest[0] in taken


def test_a_slow_client_does_not_hold_up_the_others_of_its_user() -> None:
    slow, quick = World(), World(room=1000)
    hub = Hub(most_per_user=3)
    hub.attach(slow.client)
    hub.attach(quick.client)

    for number in range(100):
        hub.send("u", ready({"trade": number}))

    assert len(quick.line.taken) == 100
    assert slow.client.end_reason


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536])
def test_a_frame_says_its_length_as_the_standard_wants(length: int) -> None:
    frame = ready_text("x" * length).frame

    size, head = frame[1], 2
    if size > 125:
        head = {126: 4, 127: 10}[size]
        size = int.from_bytes(frame[2:head])
    assert (frame[0], size, frame[head:]) == (0x81, length, b"x" * length)


async def test_a_line_through_a_coroutine_sends_in_order_and_waits_for_each() -> None:
    sent: list[str] = []
    may_go, both = asyncio.Semaphore(0), asyncio.Event()

    async def send(text: str) -> None:
        await may_go.acquire()
        sent.append(text)
        if len(sent) == 2:
            both.set()

    line = SendingLine(send)
    client = SocketClient(
        "u", line, patience=PATIENCE, monotonic_s=lambda: 0.0, on_end=lambda: None
    )
    sending = asyncio.create_task(line.run())
    for number in range(3):
        client.offer(ready_text(f"tick {number}")._replace(latest_of="tick"))
    may_go.release()
    may_go.release()
    async with asyncio.timeout(20):
        await both.wait()
    sending.cancel()

    assert sent == ["tick 0", "tick 2"]
