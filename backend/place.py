"""Where the daemon's session is: its plan, its prefix, its message server.

Read from the state folder, so that it is known with the daemon and the server down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from actors.instruments import Instrument, InstrumentCatalogue, UnknownInstrument
from actors.messages import TradingMode
from actors.session import SessionCalendar, SessionTable
from daemon.embedded_redis import EmbeddedRedis
from daemon.errors import ReplayError
from daemon.plan import SessionPlan, read_plan
from daemon.session_files import current_session
from daemon.settings import Settings
from daemon.thinking_metrics import most_cycles_in


@dataclass(frozen=True)
class Place:
    """One session of the daemon, as its plan says."""

    state_dir: Path
    folder: Path
    plan: SessionPlan
    url: str  # of the message server

    @property
    def mode(self) -> TradingMode:
        """Whether orders of this daemon move real money."""
        return "REAL" if self.plan.mode == "live" else "PAPER"

    @cached_property
    def catalogue(self) -> InstrumentCatalogue:
        """The instruments that are traded."""
        return InstrumentCatalogue(self.plan.instruments)

    @cached_property
    def calendar(self) -> SessionCalendar:
        """When they are traded."""
        return SessionCalendar(SessionTable.model_validate(self.plan.calendar))

    @cached_property
    def settings(self) -> Settings:
        """The settings that the session began with."""
        return Settings.model_validate(self.plan.settings)

    @cached_property
    def most_cycles(self) -> int:
        """Cycles of a thought of full depth; 0 without a model."""
        return most_cycles_in(self.plan)

    @cached_property
    def timeframes(self) -> dict[str, str]:
        """Bar length by instrument."""
        return {market.instrument: market.timeframe for market in self.plan.markets}

    def next_close_ns(self, name: str, timeframe: str, now_ns: int) -> int:
        """Return when the bar closes that is open, or else the next to open, as the feed closes it.

        `now_ns` itself where that is not known: no such instrument, or beyond the calendar.
        """
        instrument = self.instrument(name)
        if instrument is None:
            return now_ns
        market = instrument.session
        try:
            return self.calendar.bar_close_ns(market, timeframe, now_ns)
        except ValueError:  # the market is closed
            opens_ns = self.calendar.next_open_ns(market, now_ns)
        if opens_ns is None:
            return now_ns
        return self.calendar.bar_close_ns(market, timeframe, opens_ns)

    def instrument(self, name: str) -> Instrument | None:
        """Return the traded instrument of any spelling, or None."""
        try:
            return self.catalogue[name]
        except UnknownInstrument:
            return None


def find_place(settings: Settings, *, demo: bool) -> Place | None:
    """Return the session that runs or ran last under the state folder; None before the first.

    With `demo` the newest demo's, which lives in a state folder of its own.
    """
    state_dir = settings.session.state_dir
    if demo:
        demos = sorted((state_dir / "demo").glob("*/current"))
        if not demos:
            return None
        state_dir = demos[-1].parent
    folder = current_session(state_dir)
    if folder is None:
        return None
    try:
        plan = read_plan(folder)
    except ReplayError:
        return None  # being written, or of another version: there is no session to show
    url = EmbeddedRedis(state_dir / "redis", url=settings.bus.url).url
    return Place(state_dir, folder, plan, url)


Finder = Callable[[], Place | None]
