"""Thinking watch: end a reasoning process that owes a decision for too long, from outside of it.

What the process is doing is not asked: stopped, caught in a loop of its own or in a library, it
looks the same from here, where contexts and decisions pass by. Its successor finds the contexts
unanswered and past their deadline, and says HOLD.
"""

import asyncio
from collections.abc import Callable

from actors.deciding import decision_id
from actors.messages import Alert, Bar, Decision, Heartbeat, MarketContext
from daemon.bus import Bus, Entry
from daemon.errors import BusError
from daemon.logs import get_logger

WATCHED = "reasoning"
_POLLS_PER_LIMIT = 10


class ThinkingWatch:
    """Measure the time from a context to its decision, and call `end` when it is over `limit_s`.

    An answer to anything else counts as progress. Nothing is held against a process before its
    first heartbeat, and nothing that this loop itself slept through. Without a heartbeat for
    `silent_after_s` it is ended as well.
    """

    name = "thinking_watch"

    def __init__(
        self,
        bus: Bus,
        *,
        limit_s: float,
        silent_after_s: float,
        end: Callable[[str], None],
        monotonic_s: Callable[[], float],
        clock_ns: Callable[[], int],
    ) -> None:
        self._bus = bus
        self._limit_s = limit_s
        self._silent_after_s = silent_after_s
        self._end = end
        self._monotonic_s = monotonic_s
        self._clock_ns = clock_ns
        self._owed: dict[str, tuple[MarketContext, float]] = {}  # by decision id, oldest first
        self._progress_s = 0.0
        self._heard_s: float | None = None  # last heartbeat; None: of this process there was none
        self._beat_ns = 0  # when it was published; older ones say nothing
        self._stopping = asyncio.Event()

    def note(self, entry: Entry) -> None:
        """Take notice of an entry that has just appeared on the bus."""
        now_s = self._monotonic_s()
        match entry.envelope.message:
            case MarketContext(bar=Bar(origin="backfilled")):
                pass  # nothing is decided on it
            case MarketContext() as context if self._heard_s is not None:
                age_s = max(self._clock_ns() - entry.envelope.published_ns, 0) / 1e9
                self._owed[decision_id(context)] = (context, now_s - age_s)
            case Decision(id=id_):
                self._owed.pop(id_, None)
                self._progress_s = now_s
            case Heartbeat(actor=actor) if actor == WATCHED:
                self._hear(entry.envelope.published_ns, now_s)
            case Alert(source=source) if source == WATCHED:
                self._owed.clear()  # it could not handle one, and begins anew
            case _:
                pass

    def forget(self) -> None:
        """Take notice that the process has ended: its successor owes nothing before it is ready."""
        self._owed.clear()
        self._heard_s = None
        self._beat_ns = self._clock_ns()  # its own last one may come past here only now

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Watch until `stop`."""
        before_s = self._monotonic_s()
        while not self._stopping.is_set():
            await asyncio.sleep(self._limit_s / _POLLS_PER_LIMIT)
            now_s = self._monotonic_s()
            if now_s - before_s > self._limit_s / 2:
                self._forgive(now_s)  # we slept: what has come since is still to be noted
            before_s = now_s
            reason = self._complaint(now_s)
            if reason and await self._is_so(now_s):
                get_logger(part=self.name).error("reasoning is stuck", reason=reason)
                self.forget()
                self._end(reason)

    def _hear(self, beat_ns: int, now_s: float) -> None:
        if beat_ns > self._beat_ns:
            self._beat_ns, self._heard_s = beat_ns, now_s

    def _forgive(self, now_s: float) -> None:
        self._progress_s = now_s
        if self._heard_s is not None:
            self._heard_s = now_s

    def _complaint(self, now_s: float) -> str:
        """Return what there is to complain of, or nothing."""
        if self._heard_s is None:
            return ""
        if self._owed:
            id_, (_, since_s) = next(iter(self._owed.items()))
            waited_s = now_s - max(since_s, self._progress_s)
            if waited_s > self._limit_s:
                return f"it gave no answer to {id_} for {1000 * waited_s:.0f} ms"
        silent_s = now_s - self._heard_s
        return f"no sign of life for {silent_s:.0f} s" if silent_s > self._silent_after_s else ""

    async def _is_so(self, now_s: float) -> bool:
        """Ask the bus itself, since an answer may be there and not have come past here yet."""
        try:
            decisions = await self._bus.latest(Decision.stream)
            beats = await self._bus.latest(Heartbeat.stream)
        except BusError:
            self.forget()  # nobody can answer without the bus
            return False
        for id_, (context, _) in list(self._owed.items()):
            answer = decisions.get(context.instrument)
            if answer is not None and answer.message.time_ns >= context.time_ns:
                del self._owed[id_]
        if WATCHED in beats:
            self._hear(beats[WATCHED].published_ns, now_s)
        return bool(self._complaint(now_s))
