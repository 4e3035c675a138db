"""The hand-over: in order, bounded, and clear about how a source ended."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from daemon.errors import PartCrashed
from daemon.handover import Handover


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_events_come_in_order_as_many_as_wait_and_no_more_than_fit() -> None:
    handover: Handover[int] = Handover(4)
    reading = asyncio.create_task(handover.read(numbers(9)))

    taken = []
    while batch := await handover.take(64):
        taken.append(batch)
        assert len(handover) == 0

    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert await handover.take(64) == []
    await reading


async def test_a_full_hand_over_holds_the_reader() -> None:
    handover: Handover[int] = Handover(3)
    reading = asyncio.create_task(handover.read(numbers(100)))
    for _ in range(10):
        await asyncio.sleep(0)

    assert len(handover) == 3
    reading.cancel()


async def test_what_the_source_raises_comes_behind_its_events_and_then_again_as_a_crash() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("half a file")

    handover: Handover[int] = Handover(3)
    await handover.read(failing())

    assert await handover.take(64) == [1]
    with pytest.raises(ValueError, match="half a file"):
        await handover.take(64)
    with pytest.raises(PartCrashed, match="cannot be read further"):
        await handover.take(64)


async def test_a_reader_that_was_stopped_has_not_come_to_the_end() -> None:
    async def for_ever() -> AsyncIterator[int]:
        await asyncio.sleep(3600)
        yield 1

    handover: Handover[int] = Handover(3)
    reading = asyncio.create_task(handover.read(for_ever()))
    taking = asyncio.create_task(handover.take(64))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    await asyncio.sleep(0)

    assert not taking.done()
    taking.cancel()


def test_a_hand_over_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="most must be at least 1"):
        Handover(0)
