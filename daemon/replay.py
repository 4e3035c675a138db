"""Replay: fold a recorded session through the same actor classes and find the first difference.

Each actor gets its recorded inputs in the order it had handled them, and must yield its recorded
outputs. If every actor does, the whole session follows from its edges (ticks, time, the broker's
reports, the operator), since one actor's outputs are the next one's inputs. Thinking runs to the
recorded depth; what was measured with a real clock is left out of the comparison.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from actors.base import Actor
from actors.messages import Alert, AnyMessage, Decision, Message
from actors.reasoning import Recorded
from daemon.actor_process import load_thinker
from daemon.bus import Envelope, id_key
from daemon.errors import ReplayError
from daemon.journal import RecordedEntry, read_records, read_seal
from daemon.plan import read_plan
from daemon.runner import DEAD_LETTER_RUNBOOK
from daemon.wiring import NAMES, Workshop

_MEASURED: Mapping[str, Any] = {
    "elapsed_us": 0,
    "budget_ms": 0.0,
    "waited_us": 0,
    "batch_size": 0,
}
"""Fields of a decision that say how fast it was, with the value that stands for 'not compared'."""


class Difference(msgspec.Struct, frozen=True):
    """The first place where a replay and its recording part."""

    actor: str
    cause: str  # "stream/entry id" of the input
    input: AnyMessage
    recorded: list[AnyMessage]
    replayed: list[AnyMessage]
    error: str = ""


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found; `identical` only if every output that could be checked came again."""

    identical: bool
    unchecked: int = 0  # outputs of which a crash kept the recording from noting the handling
    decisions: int
    outputs: int
    messages: int
    actors: dict[str, int]  # messages folded per actor
    session: str = ""
    sealed: bool = False
    first_difference: Difference | None = None


class Recording:
    """A session in memory: entries by place, and what each actor handled in which order."""

    def __init__(self, folder: Path) -> None:
        self.entries: dict[tuple[str, str], Envelope] = {}
        self.handled: dict[str, list[tuple[str, str]]] = {}
        for record in read_records(folder):
            if isinstance(record, RecordedEntry):
                self.entries[(record.stream, record.id)] = record.envelope
            else:
                self.handled.setdefault(record.group, []).extend(record.entries)

    def outputs(self, source: str) -> dict[str, list[AnyMessage]]:
        """Return what an actor published, per cause, in id order within each stream.

        What its runner says about it (heartbeats, alerts of a failed message) is left out.
        """
        found: dict[str, list[tuple[str, tuple[int, int], AnyMessage]]] = {}
        for (stream, entry_id), envelope in self.entries.items():
            if envelope.source == source and envelope.cause:
                place = (stream, id_key(entry_id), envelope.message)
                found.setdefault(envelope.cause, []).append(place)
        return {
            cause: [message for *_, message in sorted(places, key=lambda place: place[:2])]
            for cause, places in found.items()
        }

    def decisions(self) -> dict[str, Decision]:
        """Return the recorded decisions by id."""
        return {
            envelope.message.id: envelope.message
            for envelope in self.entries.values()
            if isinstance(envelope.message, Decision)
        }


def replay(
    recording: Recording, build: Callable[[str], Actor[Any, Any]], names: tuple[str, ...]
) -> ReplayResult:
    """Fold every actor's recorded inputs and compare its outputs with the recorded ones.

    Raises ReplayError when the recording lacks an entry that an actor had handled.
    """
    folded: dict[str, int] = {}
    outputs = unchecked = 0
    for name in names:
        actor = build(name)
        recorded = recording.outputs(name)
        folded[name] = 0
        for cause, envelope in _inputs(recording, name):
            if not isinstance(envelope.message, actor.inputs()):
                continue
            before = recorded.pop(cause, [])
            folded[name] += 1
            replayed, error = _fold(actor, envelope.message)
            outputs += len(replayed)
            expected = [message for message in before if not _is_dead_letter_alert(message)]
            failed_then = len(expected) < len(before)
            if bool(error) != failed_then or _differ(replayed, expected):
                return _result(
                    recording,
                    folded,
                    outputs,
                    Difference(name, cause, envelope.message, expected, replayed, error),
                )
        unchecked += sum(map(len, recorded.values()))
    return msgspec.structs.replace(_result(recording, folded, outputs, None), unchecked=unchecked)


def replay_session(folder: Path) -> ReplayResult:
    """Replay a recorded session with the actors of its plan and the model it names.

    Raises ReplayError for a recording that cannot be used, IntegrityError for another model.
    """
    plan = read_plan(folder)
    workshop = Workshop.of(plan)
    recording = Recording(folder)
    decisions = recording.decisions()

    def recorded(decision_id: str) -> Recorded:
        if decision_id not in decisions:  # thinking had failed, or an entry was taken out
            raise ReplayError(f"the recording holds no decision {decision_id}")
        return Recorded.of(decisions[decision_id])

    thinker = load_thinker(plan, folder=folder)

    def build(name: str) -> Actor[Any, Any]:
        if name == "reasoning":
            return workshop.build(name, thinker, recorded)
        return workshop.build(name)

    result = replay(recording, build, NAMES)
    sealed = read_seal(folder) is not None
    if sealed and result.unchecked:
        raise ReplayError(
            f"{folder} was closed in order but does not say how {result.unchecked} outputs came "
            "about: it is incomplete and cannot be replayed"
        )
    return msgspec.structs.replace(result, session=plan.session, sealed=sealed)


def _result(
    recording: Recording, folded: dict[str, int], outputs: int, difference: Difference | None
) -> ReplayResult:
    return ReplayResult(
        identical=difference is None,
        decisions=len(recording.decisions()),
        outputs=outputs,
        messages=sum(folded.values()),
        actors=folded,
        first_difference=difference,
    )


def _inputs(recording: Recording, name: str) -> Iterator[tuple[str, Envelope]]:
    for place in recording.handled.get(name, ()):
        try:
            yield f"{place[0]}/{place[1]}", recording.entries[place]
        except KeyError:
            raise ReplayError(
                f"the recording lacks {place[0]}/{place[1]}, which {name} had handled: it is "
                "incomplete and cannot be replayed"
            ) from None


def _fold(actor: Actor[Any, Any], message: Message) -> tuple[list[AnyMessage], str]:
    try:
        return list(actor.handle(message)), ""
    except Exception as error:  # noqa: BLE001 - the recorded run may have failed here too
        return [], f"{type(error).__name__}: {error}"


def _is_dead_letter_alert(message: AnyMessage) -> bool:
    """Tell the runner's alert, which marks an input that failed, from the actor's own outputs."""
    return isinstance(message, Alert) and message.runbook == DEAD_LETTER_RUNBOOK


def _differ(replayed: list[AnyMessage], recorded: list[AnyMessage]) -> bool:
    def by_stream(messages: list[AnyMessage]) -> list[AnyMessage]:
        return sorted(map(_comparable, messages), key=lambda message: message.stream)

    return by_stream(replayed) != by_stream(recorded)


def _comparable(message: AnyMessage) -> AnyMessage:
    return (
        msgspec.structs.replace(message, **_MEASURED) if isinstance(message, Decision) else message
    )
