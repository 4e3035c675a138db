"""The one reader of the bus in this process: keeps the projection, feeds the hub, finds the daemon.

It reads without a group, so that nothing ever waits for it. Whatever is lost (server, daemon), it
looks again, rebuilds what there is, tells the sockets what they missed, and goes on; meanwhile
there is no session to show.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from actors.messages import Alert, Bar, Decision, Heartbeat, RequestAnswer, TradingSession
from backend.hub import Hub, Ready, ready
from backend.place import Finder, Place
from backend.projection import REMEMBERED, WATCHED, Frame, Projection, Trade, without_replaced
from daemon.bus import Entry, id_key
from daemon.errors import BusError
from daemon.logs import get_logger
from daemon.redis_bus import RedisBus
from daemon.redis_tail import RedisTail

_BLOCK_MS = 200
_BATCH = 500
_AT_ONCE_MS = 1  # 0 would block for ever
_GIVE_WAY_S, _AT_MOST_S = 0.006, 0.012
"""How old an event is before sockets hear of it, and at most while a bar is not decided on: the
daemon goes first (ADR-0065)."""
_NS = 1_000_000_000
_LOOK_S = 0.5
_RETRY_S = 0.25
_BROKEN_S = 1.0
_MISSED = (*REMEMBERED, RequestAnswer.stream, Alert.stream)
"""Streams of which nothing may be left out that came while the bus was lost."""


def is_undecided(entries: Iterable[Entry]) -> bool:
    """Tell whether a bar has closed on which there is no decision among the entries."""
    waiting: set[str] = set()
    for entry in entries:
        match entry.envelope.message:
            case Bar(instrument=name):
                waiting.add(name)
            case Decision(instrument=name):
                waiting.discard(name)
            case _:
                pass
    return bool(waiting)


class BusReader:
    """Follow the daemon until stopped.

    `on_trades` hears all closed trades of the session after each close, and must not wait.
    """

    def __init__(
        self,
        find: Finder,
        hub: Hub,
        *,
        wall_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        on_answer: Callable[[RequestAnswer], None],
        on_trades: Callable[[Place, Iterable[Trade]], None],
    ) -> None:
        self._find = find
        self._hub = hub
        self._wall_ns = wall_ns
        self._monotonic_s = monotonic_s
        self._on_answer = on_answer
        self._on_trades = on_trades
        self._log = get_logger(part="reader")
        self._projection: Projection | None = None
        self._stands: dict[str, str] = {}  # stream -> the last entry that sockets were told of
        self._is_connected = False
        self._last_problem = ""

    @property
    def view(self) -> Projection | None:
        """The daemon's session as it stands; None while there is none that lives."""
        projection = self._projection
        if projection is None or not self._is_connected:
            return None
        return projection if projection.is_alive(self._wall_ns()) else None

    @property
    def place(self) -> Place | None:
        """Where the daemon's session is, whether it lives or not."""
        return self._projection.place if self._projection else self._find()

    @property
    def now_ns(self) -> int:
        """Market time as the daemon tells it; that of the real clock where it tells none."""
        view = self.view
        return view.now_ns if view is not None and view.now_ns else self._wall_ns()

    async def run(self) -> None:
        """Follow for ever; end by cancelling."""
        while True:
            place = await asyncio.to_thread(self._find)
            if place is not None:
                try:
                    await self._follow(place)
                    continue
                except BusError as error:
                    if str(error) != self._last_problem:
                        self._log.warning("bus lost", reason=str(error))
                    self._last_problem = str(error)
                except Exception:  # noqa: BLE001 - whatever it was, the reader must come back
                    self._log.exception("reader broke")
                    await asyncio.sleep(_BROKEN_S)
                finally:
                    self._is_connected = False
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, place: Place) -> None:
        """Read until the daemon begins another session."""
        bus = RedisBus(place.url, place.plan.prefix)
        tail = None
        try:
            tail = await RedisTail.open(place.url, place.plan.prefix, WATCHED)
            await self._rebuild(place, bus, tail)
            self._is_connected = True
            self._last_problem = ""
            self._log.info("following", session=place.plan.session)
            look_at_s = self._monotonic_s() + _LOOK_S
            while True:
                entries = await self._gathered(tail)
                self._take(entries)
                if len(entries) >= _BATCH:
                    await asyncio.sleep(0)
                if self._monotonic_s() > look_at_s:
                    look_at_s = self._monotonic_s() + _LOOK_S
                    found = await asyncio.to_thread(self._find)
                    if found is None or found.plan.session != place.plan.session:
                        return
        finally:
            if tail is not None:
                await tail.close()
            await bus.close()

    async def _gathered(self, tail: RedisTail) -> list[Entry]:
        """Return what comes next and what follows it closely; [] after a while without any."""
        entries = await tail.read(_BATCH, _BLOCK_MS)
        if not entries:
            return []
        published_ns = min(entry.envelope.published_ns for entry in entries)
        # The age is asked of the wall clock once: it may jump, and the publisher's be another.
        since_s = self._monotonic_s() - max(self._wall_ns() - published_ns, 0) / _NS
        if (wait_s := since_s + _GIVE_WAY_S - self._monotonic_s()) > 0:
            await asyncio.sleep(wait_s)
            entries += await tail.read(_BATCH, _AT_ONCE_MS)
            while is_undecided(entries):
                left_s = since_s + _AT_MOST_S - self._monotonic_s()
                if left_s <= 0:
                    break
                entries += await tail.read(_BATCH, max(round(left_s * 1000), _AT_ONCE_MS))
        return entries

    async def _rebuild(self, place: Place, bus: RedisBus, tail: RedisTail) -> None:
        """Fold what was before the tail's place; tell sockets of what came meanwhile."""
        before = self._projection
        if before is not None and before.place.plan.session != place.plan.session:
            before = None
        projection = Projection(place)
        newest = tail.after
        past: list[Entry] = []
        for stream in _MISSED:
            past += [
                entry
                for entry in await bus.entries(stream)
                if id_key(entry.id) <= id_key(newest[stream])
            ]
        past.sort(key=lambda entry: id_key(entry.id))
        for stream in (Heartbeat.stream, Decision.stream):
            for latest in (await bus.latest(stream)).values():
                projection.restore(latest)
        if before is not None:
            projection.carry_on(before)
        for entry in past:
            if before is not None and id_key(entry.id) > id_key(self._stands[entry.stream]):
                self._send(projection, list(self._frames(projection, entry)))
                self._stands[entry.stream] = entry.id
            else:
                projection.restore(entry.envelope)
        self._projection = projection
        self._stands = newest | {entry.stream: entry.id for entry in past}
        self._on_trades(place, projection.trades)
        for user_id in self._hub.users:
            body = {"type": "status", "data": projection.status(user_id)}
            self._hub.send(user_id, ready(body))

    def _take(self, entries: Iterable[Entry]) -> None:
        projection = self._projection
        if projection is None:
            return
        trades = len(projection.trades)
        frames: list[Frame] = []
        stands: dict[str, str] = {}
        for entry in entries:
            if entry.stream == TradingSession.stream:
                # What came before concerns those whose session ran then.
                self._send(projection, without_replaced(frames))
                frames = []
            frames += self._frames(projection, entry)
            stands[entry.stream] = entry.id
        self._send(projection, without_replaced(frames))
        self._stands |= stands
        if len(projection.trades) > trades:
            self._on_trades(projection.place, projection.trades)

    def _frames(self, projection: Projection, entry: Entry) -> Iterable[Frame]:
        """Take an entry: hand an answer to who waits for it, return the frames of the rest."""
        message = entry.envelope.message
        if isinstance(message, RequestAnswer):
            self._on_answer(message)
            return ()
        return projection.fold(message)

    def _send(self, projection: Projection, frames: Sequence[Frame]) -> None:
        """Send each user what concerns him, all at once."""
        made: dict[tuple[object, ...], Ready] = {}  # by frame and what it depends on of a session
        for user_id in self._hub.users:
            session = projection.session_of(user_id)
            is_running = session is not None and session.status == "running"
            mine: list[Ready] = []
            for number, frame in enumerate(frames):
                if frame.user_id:
                    if frame.user_id == user_id:
                        mine.append(ready(frame.body))
                elif session is not None and is_running and session.instrument == frame.instrument:
                    key = (number, *frame.key_of(session))
                    if key not in made:
                        body = projection.for_session(frame, session)
                        made[key] = ready(body, frame.latest_of)
                    mine.append(made[key])
            if mine:
                self._hub.send(user_id, *mine)
