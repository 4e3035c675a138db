"""The announcer: a writer that connects when there is something to say."""

import asyncio

import pytest
from builders import a_kill_switch, a_policy_switch
from unreliable_bus import UnreliableBus

from actors.messages import KillSwitch
from daemon.announcer import Announcer
from daemon.errors import BusError


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


def an_announcer(bus: UnreliableBus) -> Announcer:
    return Announcer(bus, "operator", [KillSwitch.stream])


async def test_it_connects_once_and_only_when_something_is_said(bus: UnreliableBus) -> None:
    announcer = an_announcer(bus)
    before = bus.publishers_opened

    await announcer.publish(a_kill_switch())
    await announcer.publish(a_policy_switch(), a_kill_switch(False))
    await announcer.close()

    assert (before, bus.publishers_opened) == (0, 1)
    messages = [entry.envelope.message for entry in await bus.entries(KillSwitch.stream)]
    assert messages == [a_kill_switch(), a_policy_switch(), a_kill_switch(False)]


async def test_it_connects_again_after_an_error(bus: UnreliableBus) -> None:
    announcer = an_announcer(bus)
    await announcer.publish(a_kill_switch())
    bus.publish_faults.append("refused")

    with pytest.raises(BusError, match="did not take it"):
        await announcer.publish(a_kill_switch())
    await announcer.publish(a_kill_switch(False))

    assert bus.publishers_opened == 2
    assert len(await bus.entries(KillSwitch.stream)) == 2


async def test_it_says_when_the_server_cannot_be_reached(bus: UnreliableBus) -> None:
    bus.is_lost = True

    with pytest.raises(BusError, match="the server is gone"):
        await an_announcer(bus).publish(a_kill_switch())


async def test_several_tasks_may_speak_at_once(bus: UnreliableBus) -> None:
    announcer = an_announcer(bus)

    await asyncio.gather(*(announcer.publish(a_kill_switch()) for _ in range(5)))

    assert bus.publishers_opened == 1
    assert len(await bus.entries(KillSwitch.stream)) == 5


async def test_closing_what_was_never_opened_is_harmless(bus: UnreliableBus) -> None:
    announcer = an_announcer(bus)

    await announcer.close()
    await announcer.close()

    assert bus.publishers_opened == 0
