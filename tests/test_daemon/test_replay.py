"""Replay: the same session again, or the first place where it is another."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import a_bar
from recorded_session import RecordedSession

from actors.base import Actor
from actors.complexity import MarketComplexityActor
from actors.messages import (
    Alert,
    AnyMessage,
    Bar,
    Decision,
    Heartbeat,
    KillSwitch,
    MarketContext,
    NewsItem,
    NewsUpdate,
    PlaceOrder,
    Tick,
)
from actors.policies import ComplexitySettings
from daemon.errors import ReplayError
from daemon.journal import (
    Journal,
    Record,
    RecordedEntry,
    RecordedHandling,
    SessionWriter,
    read_records,
)
from daemon.memory_bus import MemoryBus
from daemon.plan import read_plan
from daemon.replay import Recording, replay, replay_session
from daemon.runner import DEAD_LETTER_RUNBOOK, Runner
from daemon.tick_source import until_quiet
from daemon.wiring import NAMES
from hrm.manifest import IntegrityError

Place = tuple[str, str]
Change = Callable[[Record], Record | None]


@pytest.fixture
def rewritten(recorded: RecordedSession, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes the session once more with each record changed, or left out for None."""

    def rewrite(change: Change, first: tuple[Record, ...] = (), *, seal: bool = True) -> Path:
        folder = tmp_path / "session"
        folder.mkdir()
        shutil.copy(recorded.folder / "session.json", folder)
        writer = SessionWriter(folder)
        changed = (change(record) for record in read_records(recorded.folder))
        for record in (*first, *(kept for kept in changed if kept is not None)):
            assert writer.append(record)
        if seal:
            writer.seal()
        else:
            writer.close()
        return folder

    return rewrite


def place_of(record: Record) -> Place:
    return (record.stream, record.id) if isinstance(record, RecordedEntry) else ("", "")


def without(*places: Place, handled: bool) -> Change:
    """Leave these entries out; with `handled` also from the record of who handled them."""

    def change(record: Record) -> Record | None:
        if isinstance(record, RecordedEntry):
            return None if place_of(record) in places else record
        if not handled:
            return record
        kept = tuple(place for place in record.entries if tuple(place) not in places)
        return msgspec.structs.replace(record, entries=kept) if kept else None

    return change


def entries_of(folder: Path, kind: type[AnyMessage]) -> list[RecordedEntry]:
    return [
        record
        for record in read_records(folder)
        if isinstance(record, RecordedEntry) and isinstance(record.envelope.message, kind)
    ]


def a_thought_hold(folder: Path) -> RecordedEntry:
    """Return a decision that took thought and led to nothing but its verdict."""
    return next(
        record
        for record in entries_of(folder, Decision)
        if isinstance(decision := record.envelope.message, Decision)
        and decision.cycles
        and decision.action == "HOLD"
    )


def with_message(record: RecordedEntry, message: AnyMessage) -> RecordedEntry:
    return msgspec.structs.replace(
        record, envelope=msgspec.structs.replace(record.envelope, message=message)
    )


def test_a_recorded_session_is_identical_when_it_is_folded_again(
    recorded: RecordedSession,
) -> None:
    result = replay_session(recorded.folder)

    assert result.first_difference is None
    assert result.identical
    assert (result.session, result.sealed, result.unchecked) == (recorded.plan.session, True, 0)
    assert result.decisions == 150
    assert set(result.actors) == set(NAMES)
    assert all(result.actors.values())
    assert result.messages == sum(result.actors.values())
    assert recorded.lost == 0


def test_the_session_that_is_replayed_is_worth_it(recorded: RecordedSession) -> None:
    summary = recorded.statistics.summary()

    decisions = Recording(recorded.folder).decisions().values()
    assert summary["fills"] > 20
    assert len(summary["decisions_by_action"]) == 5
    assert sum(decision.cycles > 0 for decision in decisions) > 100
    reasons = {
        record.envelope.message.reason
        for record in entries_of(recorded.folder, PlaceOrder)
        if isinstance(record.envelope.message, PlaceOrder)
    }
    assert {"DECISION", "STOP_LOSS_HIT"} <= reasons


def test_a_changed_decision_is_the_first_difference(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    chosen = a_thought_hold(recorded.folder)
    assert isinstance(chosen.envelope.message, Decision)
    changed = msgspec.structs.replace(chosen.envelope.message, confidence=0.123)
    folder = rewritten(lambda r: with_message(chosen, changed) if r == chosen else r)

    result = replay_session(folder)

    difference = result.first_difference
    assert difference is not None
    assert not result.identical
    assert (difference.actor, difference.cause) == ("reasoning", chosen.envelope.cause)
    assert isinstance(difference.input, MarketContext)
    assert difference.recorded == [changed]
    [replayed] = difference.replayed
    assert isinstance(replayed, Decision)
    assert replayed.confidence == chosen.envelope.message.confidence


def test_what_a_clock_measured_is_not_compared(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    chosen = a_thought_hold(recorded.folder)
    assert isinstance(chosen.envelope.message, Decision)
    slower = msgspec.structs.replace(
        chosen.envelope.message, elapsed_us=chosen.envelope.message.elapsed_us + 1, budget_ms=3.0
    )
    folder = rewritten(lambda r: with_message(chosen, slower) if r == chosen else r)

    assert replay_session(folder).identical


def test_a_bar_that_was_taken_out_is_the_first_difference(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    bar = entries_of(recorded.folder, Bar)[20]
    folder = rewritten(without(place_of(bar), handled=True))

    difference = replay_session(folder).first_difference

    assert difference is not None
    assert (difference.actor, difference.cause) == ("market_feed", bar.envelope.cause)
    assert difference.recorded == []
    assert difference.replayed == [bar.envelope.message]


def test_another_setting_makes_another_session(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    folder = rewritten(lambda record: record)
    plan = read_plan(folder)
    settings = plan.settings | {
        "risk_limits": plan.settings["risk_limits"] | {"min_confidence": 0.99}
    }
    msgspec.structs.replace(plan, settings=settings).write(folder)

    difference = replay_session(folder).first_difference

    assert difference is not None
    assert difference.actor == "risk"
    assert difference.cause.startswith("decision/")
    assert isinstance(difference.input, Decision)


def test_a_recording_that_lacks_a_handled_entry_cannot_be_replayed(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    tick = entries_of(recorded.folder, Tick)[100]
    folder = rewritten(without(place_of(tick), handled=False))

    with pytest.raises(ReplayError, match=f"lacks tick/{tick.id}, which market_feed had handled"):
        replay_session(folder)


@pytest.mark.parametrize("seal", [True, False])
def test_outputs_without_a_record_of_their_handling_are_told(
    recorded: RecordedSession, rewritten: Callable[..., Path], seal: bool
) -> None:
    last = [
        record
        for record in read_records(recorded.folder)
        if isinstance(record, RecordedHandling) and record.group == "complexity"
    ][-1]
    folder = rewritten(lambda record: None if record == last else record, seal=seal)

    if seal:
        with pytest.raises(ReplayError, match="does not say how 1 outputs came about"):
            replay_session(folder)
    else:  # a crash may come between an output and the record of what led to it
        result = replay_session(folder)
        assert (result.identical, result.sealed, result.unchecked) == (True, False, 1)


def test_thinking_that_had_crashed_crashes_again(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    chosen = a_thought_hold(recorded.folder)
    cause = f"decision/{chosen.id}"
    verdict = next(
        record
        for record in read_records(recorded.folder)
        if isinstance(record, RecordedEntry) and record.envelope.cause == cause
    )
    alert = Alert(
        severity="critical",
        text="reasoning could not handle it",
        runbook=DEAD_LETTER_RUNBOOK,
        at_ns=0,
        source="reasoning",
    )
    letter = RecordedEntry("alert", "1-0", with_message(chosen, alert).envelope)
    folder = rewritten(without(place_of(chosen), place_of(verdict), handled=True), (letter,))

    assert replay_session(folder).identical


def test_another_model_is_refused(
    recorded: RecordedSession, rewritten: Callable[..., Path]
) -> None:
    folder = rewritten(lambda record: record)
    plan = read_plan(folder)
    msgspec.structs.replace(plan, model_digest="0" * 64).write(folder)

    with pytest.raises(IntegrityError, match="put it back, or begin a new session"):
        replay_session(folder)


def test_a_folder_without_a_plan_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="is no session"):
        replay_session(tmp_path)


# --- messages that failed ---------------------------------------------------------------------


class ForgivingActor(MarketComplexityActor):
    """Pass over what the real one fails on."""

    def handle(self, message: Bar | NewsUpdate) -> Iterator[MarketContext]:
        if isinstance(message, NewsUpdate) or message.high >= message.low:
            yield from super().handle(message)


class FailingActor(MarketComplexityActor):
    """Fail on what the real one can handle."""

    def handle(self, message: Bar | NewsUpdate) -> Iterator[MarketContext]:
        if isinstance(message, Bar) and message.close == Decimal(22005):
            raise RuntimeError("a new bug")
        yield from super().handle(message)


async def record_complexity(folder: Path, *news: NewsUpdate) -> None:
    """Record how the complexity actor handles ten bars, of which the fifth cannot be true."""
    bus = MemoryBus()
    journal = Journal(bus, folder, ["complexity"], batch_entries=8, block_ms=5)
    runner = Runner(
        lambda: MarketComplexityActor(ComplexitySettings()),
        bus,
        clock_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        batch_entries=3,
        block_ms=5,
        heartbeat_s=10.0,
    )
    tasks = [asyncio.create_task(journal.run()), asyncio.create_task(runner.run())]
    await runner.ready.wait()
    feed = await bus.publisher("news_feed", [NewsUpdate.stream])
    await feed.publish(*news)
    await until_quiet(bus)
    publisher = await bus.publisher("market_feed", [Bar.stream])
    for number in range(10):
        low = Decimal(30000) if number == 4 else Decimal(21990)
        await publisher.publish(a_bar(str(22000 + number), number, high=Decimal(22020), low=low))
    await until_quiet(bus)
    runner.stop()
    await tasks[1]
    await journal.catch_up()
    journal.stop()
    await tasks[0]
    journal.close(seal=True)


def complexity(kind: type[MarketComplexityActor]) -> Callable[[str], Actor[Any, Any]]:
    return lambda _: kind(ComplexitySettings())


async def test_an_input_that_failed_replays_identically(tmp_path: Path) -> None:
    await record_complexity(tmp_path)
    recording = Recording(tmp_path)

    result = replay(recording, complexity(MarketComplexityActor), ("complexity",))

    alerts = [e.message for e in recording.entries.values() if isinstance(e.message, Alert)]
    assert [alert.runbook for alert in alerts] == [DEAD_LETTER_RUNBOOK]
    assert result.identical
    assert (result.actors, result.outputs, result.unchecked) == ({"complexity": 10}, 9, 0)


async def test_news_are_recorded_and_replay_to_the_same_complexity(tmp_path: Path) -> None:
    close_ns = a_bar().close_ns
    item = NewsItem(id="a", impact=0.75, published_ns=close_ns)
    await record_complexity(tmp_path, NewsUpdate(read_ns=close_ns, items=(item,)))
    recording = Recording(tmp_path)

    result = replay(recording, complexity(MarketComplexityActor), ("complexity",))

    messages = [entry.message for entry in recording.entries.values()]
    contexts = [one for one in messages if isinstance(one, MarketContext)]
    assert max(context.news_impact for context in contexts) == 0.75
    assert "news" in contexts[-1].missing  # by then the feed had not been read for long
    assert result.identical
    assert result.actors == {"complexity": 11}


async def test_an_input_that_failed_and_does_so_no_more_is_a_difference(tmp_path: Path) -> None:
    await record_complexity(tmp_path)

    result = replay(Recording(tmp_path), complexity(ForgivingActor), ("complexity",))

    difference = result.first_difference
    assert difference is not None
    assert isinstance(difference.input, Bar)
    assert difference.input.close == Decimal(22004)
    assert (difference.recorded, difference.replayed, difference.error) == ([], [], "")


async def test_an_input_that_fails_now_is_a_difference_with_the_error(tmp_path: Path) -> None:
    await record_complexity(tmp_path)

    result = replay(Recording(tmp_path), complexity(FailingActor), ("complexity",))

    difference = result.first_difference
    assert difference is not None
    assert isinstance(difference.input, Bar)
    assert difference.input.close == Decimal(22005)
    assert difference.error == "RuntimeError: a new bug"
    assert len(difference.recorded) == 1


def test_what_an_edge_published_is_no_output(recorded: RecordedSession) -> None:
    recording = Recording(recorded.folder)

    assert recording.outputs("tick_source") == {}
    assert any(isinstance(e.message, KillSwitch) for e in recording.entries.values())
    assert any(isinstance(e.message, Heartbeat) for e in recording.entries.values())
