"""The wiring: every message has somebody who says it and somebody who hears it."""

from pathlib import Path

import msgspec
import pytest
from recorded_session import RecordedSession

from actors.messages import MESSAGE_TYPES
from actors.reasoning import ReasoningActor
from daemon.errors import ReplayError
from daemon.wiring import ACTORS, EDGES, INPUT_STREAMS, NAMES, Workshop, graph, on_crash


@pytest.fixture
def workshop(recorded: RecordedSession) -> Workshop:
    return Workshop.of(recorded.plan)


def test_actors_come_in_flow_order() -> None:
    assert NAMES == (
        "market_feed",
        "complexity",
        "reasoning",
        "risk",
        "execution",
        "monitoring",
    )


def test_bugs_in_risk_and_execution_halt_trading() -> None:
    assert [name for name in NAMES if on_crash(name) == "halt"] == ["risk", "execution"]
    assert on_crash("order_gateway") == "restart"


def test_every_stream_is_written_by_one_and_read_by_another() -> None:
    streams = {kind.stream for kind in MESSAGE_TYPES}
    written = {kind.stream for wire in ACTORS for kind in wire.actor.outputs()}
    written |= {stream for _, writes in EDGES.values() for stream in writes}
    read = {kind.stream for wire in ACTORS for kind in wire.actor.inputs()}
    read |= {stream for reads, _ in EDGES.values() for stream in reads}

    assert written | {"heartbeat"} == streams  # heartbeats come from the runners
    for_people = {"alert", "quarantine"}
    for_the_backend = {"answer", "session"}
    assert read | for_people | for_the_backend >= streams


def test_streams_with_numbers_have_one_writer() -> None:
    writers: dict[str, set[str]] = {}
    for wire in ACTORS:
        for kind in wire.actor.outputs():
            if not kind.shared:
                writers.setdefault(kind.stream, set()).add(wire.actor.name)
    for edge, (_, writes) in EDGES.items():
        for stream in writes:
            if not next(kind for kind in MESSAGE_TYPES if kind.stream == stream).shared:
                writers.setdefault(stream, set()).add(edge)

    assert {stream: len(names) for stream, names in writers.items()} == dict.fromkeys(writers, 1)


def test_what_must_be_handled_in_the_end_are_the_streams_with_numbers() -> None:
    assert INPUT_STREAMS["market_feed"] == ("tick", "time", "context", "depth")
    assert INPUT_STREAMS["risk"] == ("decision", "position", "chain", "time")
    assert INPUT_STREAMS["order_gateway"] == ("order",)
    assert set(INPUT_STREAMS) == {*NAMES, "order_gateway"}


@pytest.mark.parametrize("name", NAMES)
def test_the_workshop_builds_every_actor_afresh(workshop: Workshop, name: str) -> None:
    actor = workshop.build(name)

    assert actor.name == name
    assert workshop.build(name) is not actor


def test_an_unknown_actor_is_refused_with_the_known_ones(workshop: Workshop) -> None:
    with pytest.raises(ValueError, match="no actor is called 'astrology': choose from market_feed"):
        workshop.build("astrology")


def test_without_a_model_reasoning_gives_the_reason_of_the_plan(
    recorded: RecordedSession,
) -> None:
    plan = msgspec.structs.replace(recorded.plan, no_model_reason="it was eaten by a mouse")

    actor = Workshop.of(plan).build("reasoning")

    assert isinstance(actor, ReasoningActor)
    assert actor._no_thinker_because == "it was eaten by a mouse"


@pytest.mark.parametrize("part", ["settings", "calendar"])
def test_a_plan_of_another_version_is_refused(recorded: RecordedSession, part: str) -> None:
    plan = msgspec.structs.replace(recorded.plan, **{part: {"a_section_of_tomorrow": {}}})

    with pytest.raises(ReplayError, match="does not fit this version"):
        Workshop.of(plan)


def test_the_graph_names_every_actor_and_edge() -> None:
    shown = {str(part.get("actor", part.get("edge"))): part for part in graph()}

    assert list(shown) == [*NAMES, *EDGES]
    assert shown["reasoning"] == {
        "actor": "reasoning",
        "inputs": ["MarketContext", "PartialBar", "Position", "PolicySwitch"],
        "outputs": ["Decision"],
        "heavy": True,
        "on_crash": "restart",
    }
    assert shown["order_gateway"] == {
        "edge": "order_gateway",
        "reads": ["order"],
        "writes": ["report", "heartbeat"],
    }


def test_the_settings_of_the_plan_reach_the_actors(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    plan = recorded.plan
    limits = plan.settings["risk_limits"] | {"min_confidence": 0.75}
    settings = plan.settings | {"risk_limits": limits}

    workshop = Workshop.of(msgspec.structs.replace(plan, settings=settings))

    assert workshop.settings.risk_limits.min_confidence == 0.75
    assert workshop.timeframes == {"Nifty": "5"}
