"""Faults on command: what goes wrong next, how often, and a schedule of such things by seed.

A fault is armed with `inject` and fires on the occasions it names; what fired is kept in `fired`.
The parts of the simulator ask `take` at the place where the fault belongs. Times are market time;
what lasts for 0 seconds lasts until `clear`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final, Generic, Literal, TypeVar, get_args

from daemon.brokers.fyers_simulator.instruments import NS_PER_SECOND

FaultKind = Literal[
    # REST calls; `path` narrows them down, as "POST /api/v3/orders"
    "unauthorised",  # 401, code -16
    "rate_limited",  # 429, code -429, with Retry-After
    "rate_limited_bare",  # 429 without it
    "server_error",  # 502 with HTML
    "swallowed",  # never processed, never answered: the connection is cut after `seconds`
    "unanswered",  # processed, never answered: the connection is cut after `seconds`
    "slow_reply",  # answered after `seconds` of real time
    "no_acknowledgement",  # an order call: taken, answered with code 201
    "order_rejected",  # an order call: rejected by the risk desk
    # frames of the data socket
    "data_drop",
    "data_repeat",
    "data_late",  # held back for three frames
    "data_reorder",  # changes places with the next one
    "data_mute",  # connected, answers, but sends no data for `seconds`
    "data_half_open",  # neither reads nor writes for `seconds`, and still counts as connected
    "data_abort",  # TCP reset in the middle of a frame
    "data_slow_handshake",  # upgrade answered after `seconds` of real time
    "data_refused",  # 403 at the upgrade
    "data_auth_refused",  # N to the authentication
    "data_close_after_auth",
    "data_subscribe_refused",  # N to a subscription
    "data_symbol_limit",  # message 51001 instead
    "data_unknown_topic",  # an update and a lite record of a topic nobody has been told of
    "data_unmapped_snapshot",  # a snapshot of a topic that was not subscribed
    "data_unknown_record",  # a record of a kind that is not known
    "data_large_frame",  # all records of a push in one frame, beyond 64 KiB if there are many
    "data_zero_multiplier",  # the next snapshot has multiplier 0
    # events of the order socket
    "order_drop",
    "order_repeat",
    "order_late",
    "order_reorder",
    "order_mute",
    "order_half_open",
    "order_abort",
    "order_slow_handshake",
    "order_refused",
    "order_missing_fill",  # all events of one fill are lost: trade, order, position
    # the session
    "token_expired",  # all tokens die at once
    "session_changed",  # the exchange closes `seconds` from now, for the rest of the day
]
ALL_FAULTS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

SCHEDULED: Final[tuple[FaultKind, ...]] = tuple(
    kind
    for kind in ALL_FAULTS
    # These end the session or never end; they have tests of their own.
    if kind not in ("session_changed", "data_refused", "order_refused", "data_symbol_limit")
)
LONGEST_S: Final = 20.0  # of a scheduled fault that lasts
_SLOW_REPLY_S: Final = 0.5
_LATE_FRAMES: Final = 3
_FOR_EVER: Final = 2**63

Frame = TypeVar("Frame")


@dataclass(slots=True, kw_only=True)
class Fault:
    """One thing to go wrong: `count` times, after `after` occasions on which it does not."""

    kind: FaultKind
    count: int = 1
    after: int = 0
    seconds: float = 0.0
    path: str = ""  # part of "METHOD /path" of a REST call; empty: any


class Faults:
    """What is armed, what has fired, and the schedule."""

    def __init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self._armed: list[Fault] = []
        self._now_ns = 0
        self._until_ns: dict[str, int] = {}
        self._watchers: dict[str, Callable[[Fault], None]] = {}
        self._timers: list[tuple[int, Callable[[], None]]] = []
        self._schedule: Schedule | None = None

    def inject(
        self,
        kind: FaultKind,
        *,
        count: int = 1,
        after: int = 0,
        seconds: float = 0.0,
        path: str = "",
    ) -> Fault:
        """Arm a fault; those of the session take effect at once."""
        if kind not in ALL_FAULTS:
            raise ValueError(f"no fault {kind!r}: use one of {', '.join(ALL_FAULTS)}")
        fault = Fault(kind=kind, count=count, after=after, seconds=seconds, path=path)
        if count < 1 or after < 0 or seconds < 0:
            raise ValueError(f"count must be 1 or more, after and seconds 0 or more, of {kind}")
        if kind in self._watchers:
            self.fired[kind] += 1
            self._watchers[kind](fault)
            return fault
        if kind.endswith("_mute"):
            self.fired[kind] += 1
            until_ns = self._now_ns + round(seconds * NS_PER_SECOND)
            self._until_ns[kind] = until_ns if seconds > 0 else _FOR_EVER
            return fault
        self._armed.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm everything and end what lasts."""
        self._armed.clear()
        self._until_ns.clear()

    def stop(self) -> None:
        """Let nothing go wrong from now on: no schedule, nothing armed, what lasts ends."""
        self._schedule = None
        self.clear()
        timers, self._timers = self._timers, []
        for _, act in timers:
            act()

    def take(self, kind: FaultKind, where: str = "") -> Fault | None:
        """Return the fault of this kind that fires on this occasion, None if none does."""
        for fault in self._armed:
            if fault.kind != kind or fault.path not in where:
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            fault.count -= 1
            if fault.count <= 0:
                self._armed.remove(fault)
            self.fired[kind] += 1
            return fault
        return None

    def lasts(self, kind: FaultKind) -> bool:
        """Tell whether a fault that lasts for seconds of market time still does."""
        return self._now_ns < self._until_ns.get(kind, 0)

    def on_inject(self, kind: FaultKind, act: Callable[[Fault], None]) -> None:
        """Let a fault act the moment it is injected."""
        self._watchers[kind] = act

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call a function once so many seconds of market time have passed; 0 means never."""
        if seconds > 0:
            self._timers.append((self._now_ns + round(seconds * NS_PER_SECOND), act))

    def follow(
        self,
        seed: int,
        kinds: Iterable[FaultKind],
        mean_gap_s: float,
        longest_s: float = LONGEST_S,
    ) -> None:
        """Inject faults of these kinds at random instants of market time from now on.

        longest_s: of those that last, in market time.
        """
        self._schedule = Schedule(seed, tuple(kinds), mean_gap_s, self._now_ns, longest_s)

    def step(self, now_ns: int) -> None:
        """Move on in market time, injecting what is due."""
        self._now_ns = now_ns
        due = [act for at_ns, act in self._timers if at_ns <= now_ns]
        self._timers = [timer for timer in self._timers if timer[0] > now_ns]
        for act in due:
            act()
        if self._schedule is not None:
            for fault in self._schedule.due(now_ns):
                self.inject(fault.kind, count=fault.count, seconds=fault.seconds, path=fault.path)

    @property
    def armed(self) -> list[Fault]:
        return list(self._armed)


class Schedule:
    """Faults at exponentially spaced instants; the same seed and kinds give the same list."""

    def __init__(
        self,
        seed: int,
        kinds: tuple[FaultKind, ...],
        mean_gap_s: float,
        start_ns: int,
        longest_s: float = LONGEST_S,
    ) -> None:
        if not kinds or mean_gap_s <= 0:
            raise ValueError("a schedule needs at least one kind and a mean gap above 0 s")
        self._draw = Random(f"{seed}|faults")
        self._kinds = kinds
        self._mean_gap_s = mean_gap_s
        self._longest_s = longest_s
        self._next_ns = start_ns
        self._wait()

    def due(self, now_ns: int) -> list[Fault]:
        """Return the faults that begin up to an instant, once each."""
        found: list[Fault] = []
        while self._next_ns <= now_ns:
            kind = self._draw.choice(self._kinds)
            found.append(
                Fault(kind=kind, count=self._draw.randint(1, 3), seconds=self._seconds(kind))
            )
            self._wait()
        return found

    def _seconds(self, kind: FaultKind) -> float:
        if kind.endswith(("_mute", "_half_open")):
            return self._draw.uniform(1, self._longest_s)
        if kind in ("slow_reply", "swallowed", "unanswered") or kind.endswith("_slow_handshake"):
            return self._draw.uniform(0, _SLOW_REPLY_S)
        return 0.0

    def _wait(self) -> None:
        gap_s = self._draw.expovariate(1 / self._mean_gap_s)
        self._next_ns += max(1, round(gap_s * NS_PER_SECOND))


class FaultyStream(Generic[Frame]):
    """Frames on their way out of one socket, some of them dropped, repeated, late or reordered."""

    def __init__(self, faults: Faults, socket: Literal["data", "order"]) -> None:
        self._faults = faults
        self._kinds: tuple[FaultKind, ...] = (
            ("data_drop", "data_repeat", "data_late", "data_reorder")
            if socket == "data"
            else ("order_drop", "order_repeat", "order_late", "order_reorder")
        )
        self._held: list[tuple[int, Frame]] = []  # how many frames still go first

    def through(self, frame: Frame) -> list[Frame]:
        """Return what is to be sent now that this frame is due."""
        drop, repeat, late, reorder = self._kinds
        if self._faults.take(drop):
            return []
        if self._faults.take(late):
            self._held.append((_LATE_FRAMES, frame))
            return []
        if self._faults.take(reorder):
            self._held.append((1, frame))
            return []
        sent = [frame, frame] if self._faults.take(repeat) else [frame]
        due = [held for left, held in self._held if left <= 1]
        self._held = [(left - 1, held) for left, held in self._held if left > 1]
        return sent + due
