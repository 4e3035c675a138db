"""The shape of an actor: its class line is its wiring, and recovery folds without outputs."""

from collections.abc import Iterator
from typing import Any

import pytest
from builders import a_bar, a_tick, a_time, outputs_of

from actors.base import Actor
from actors.messages import Alert, Bar, Message, Tick, TimeEvent


class OneToOneActor(Actor[Tick, Bar]):
    name = "one_to_one"

    def __init__(self) -> None:
        self.seen = 0

    def handle(self, message: Tick) -> Iterator[Bar]:
        self.seen += 1
        yield a_bar(ticks=self.seen)


class ManyActor(Actor[Tick | TimeEvent, Bar | Alert]):
    name = "many"

    def handle(self, message: Tick | TimeEvent) -> Iterator[Bar | Alert]:
        yield from ()


class HeirActor(OneToOneActor):
    name = "heir"


def test_the_class_line_is_the_wiring() -> None:
    assert (OneToOneActor.inputs(), OneToOneActor.outputs()) == ((Tick,), (Bar,))
    assert (ManyActor.inputs(), ManyActor.outputs()) == ((Tick, TimeEvent), (Bar, Alert))


def test_an_heir_has_the_wiring_of_its_parent() -> None:
    assert (HeirActor.inputs(), HeirActor.outputs()) == ((Tick,), (Bar,))


def test_an_actor_that_names_no_messages_is_refused() -> None:
    class VagueActor(Actor):  # type: ignore[type-arg]  # the mistake that is refused
        name = "vague"

        def handle(self, message: Message) -> Iterator[Message]:
            yield from ()

    with pytest.raises(TypeError, match=r"VagueActor must name its messages: class X\(Actor\["):
        VagueActor.inputs()


def test_an_actor_that_does_not_handle_cannot_be_made() -> None:
    class IdleActor(Actor[Tick, Bar]):
        name = "idle"

    kind: Any = IdleActor
    with pytest.raises(TypeError, match="handle"):
        kind()


def test_remembering_is_handling_without_outputs() -> None:
    actor = OneToOneActor()

    answer = actor.remember(a_tick())

    assert answer is None
    assert outputs_of(actor, a_tick()) == [a_bar(ticks=2)]


def test_an_actor_is_light_and_remembers_everything_unless_it_says_otherwise() -> None:
    assert not ManyActor.heavy
    assert ManyActor.memory_ns is None
    assert outputs_of(ManyActor(), a_time()) == []
