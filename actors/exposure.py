"""Exposure: what is open, what is on its way, and what was lost, with the capital all that takes.

Bookkeeping for risk.py, which alone says what follows from it.
"""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import Position
from actors.policies import RiskLimits
from actors.positions import summed
from actors.session import SessionCalendar


@dataclass(frozen=True, slots=True)
class Reservation:
    """An approved entry whose fate is not known yet."""

    subject: str  # what it is a view of
    quantity: int  # signed units
    capital: Decimal
    decided_ns: int
    session_day: date
    is_manual: bool


@dataclass(slots=True)
class Day:
    """One session day of one market."""

    key: date
    start_equity: Decimal
    is_locked: bool = False


class Exposure:
    """Count positions, entries on their way, and the losses of day and session.

    An approved entry counts as open until a Position of its instrument shows what became of it;
    what is still on its way when the session day ends is dropped with the day's orders.
    """

    def __init__(
        self, limits: RiskLimits, catalogue: InstrumentCatalogue, calendar: SessionCalendar
    ) -> None:
        self._limits = limits
        self._catalogue = catalogue
        self._calendar = calendar
        self._positions: dict[str, Position] = {}
        self._on_their_way: dict[str, Reservation] = {}
        self._marks: dict[str, Decimal] = {}
        self._days: dict[str, Day] = {}  # by market of sessions.yaml
        self.peak_equity = limits.initial_capital
        self.drawdown_is_locked = False

    @property
    def capital_available(self) -> Decimal:
        """Rupees that neither positions nor entries on their way have taken."""
        return self._limits.initial_capital + self._realised - self._capital_in_use

    @property
    def exposed(self) -> frozenset[str]:
        """Instruments with a view open on them, or an entry on its way; options by underlying."""
        held = {position.subject for position in self._positions.values() if position.net_quantity}
        return frozenset(held | {entry.subject for entry in self._on_their_way.values()})

    @property
    def equity(self) -> Decimal:
        """Capital with open positions at the last price that was decided on."""
        equity = self._limits.initial_capital + self._realised
        for position in self._positions.values():
            if position.net_quantity:
                gain = self.value_of(position) - position.average_price
                equity += gain * position.net_quantity
        return equity

    @property
    def most_daily_loss(self) -> Decimal:
        """Rupees whose loss since the session opened locks the day."""
        return Decimal(str(self._limits.max_daily_loss)) * self._limits.initial_capital

    def position(self, name: str) -> Position | None:
        """Return the last position of an instrument, if there ever was one."""
        return self._positions.get(name)

    def held(self, subject: str) -> Position | None:
        """Return the open position that is a view of an instrument: itself, or an option on it."""
        return next(
            (
                position
                for position in self._positions.values()
                if position.net_quantity and position.subject == subject
            ),
            None,
        )

    def history(self, subject: str) -> Position | None:
        """Return all that was held for a view of an instrument, as one position."""
        return summed(self._positions.values(), subject)

    def value_of(self, position: Position) -> Decimal:
        """Return the price that a position is valued at."""
        return self._marks.get(position.instrument, position.average_price)

    def view(self, subject: str) -> int:
        """Return the signed units held for a rise of an instrument."""
        position = self.held(subject)
        return position.view if position else 0

    def is_on_its_way(self, subject: str) -> bool:
        """Tell whether an approved entry on this instrument has not been heard of yet."""
        return any(entry.subject == subject for entry in self._on_their_way.values())

    def has_manual_entry(self) -> bool:
        """Tell whether an entry of a user is on its way."""
        return any(entry.is_manual for entry in self._on_their_way.values())

    def reserve(self, name: str, reservation: Reservation) -> None:
        """Count an approved entry as open from now on."""
        self._on_their_way[name] = reservation

    def mark(self, name: str, price: Decimal) -> None:
        """Value what is held of an instrument at this price from now on."""
        self._marks[name] = price

    def take(self, position: Position, now_ns: int | None) -> None:
        """Take what execution says is held; it settles the entry that was on its way."""
        name = position.instrument
        self._positions[name] = position
        reserved = self._on_their_way.get(name)
        if reserved is not None and position.updated_ns >= reserved.decided_ns:
            net = position.net_quantity
            is_complete = abs(net) >= abs(reserved.quantity)
            if net == 0 or is_complete:
                del self._on_their_way[name]
        if position.subject in self._catalogue:
            self.begin_day(self._catalogue[position.subject], position.updated_ns, now_ns)
        self.measure_losses()

    def day(self, instrument: Instrument) -> Day:
        """Return the session day of the instrument's market; `begin_day` has been asked before."""
        return self._days[instrument.session]

    def session_day(self, instrument: Instrument, now_ns: int) -> date:
        """Return the date of the session that the instrument is in."""
        return self._calendar.session_key(instrument.session, now_ns)

    def roll_days(self, now_ns: int) -> None:
        """Begin the days that have come, and drop what was on its way in those that are over."""
        for market, day in self._days.items():
            key = self._calendar.session_key(market, now_ns)
            if key > day.key:
                self._days[market] = Day(key, self.equity)
        for name, reserved in list(self._on_their_way.items()):
            instrument = self._catalogue[reserved.subject]
            if self.session_day(instrument, now_ns) > reserved.session_day:
                del self._on_their_way[name]

    def begin_day(self, instrument: Instrument, seen_ns: int, now_ns: int | None) -> None:
        """See to it that the market's session day is being counted."""
        if instrument.session not in self._days:
            # What was lost before this market was first heard of belongs to the same session.
            key = self.session_day(instrument, seen_ns if now_ns is None else now_ns)
            start = next(
                (day.start_equity for day in self._days.values() if day.key == key),
                self._limits.initial_capital if not self._days else self.equity,
            )
            self._days[instrument.session] = Day(key, start)

    def measure_losses(self) -> None:
        """Lock the days and the session whose loss has reached its limit."""
        equity = self.equity
        self.peak_equity = max(self.peak_equity, equity)
        for day in self._days.values():
            if day.start_equity - equity >= self.most_daily_loss:
                day.is_locked = True
        fall = (self.peak_equity - equity) / self.peak_equity
        if fall >= Decimal(str(self._limits.max_drawdown)):
            self.drawdown_is_locked = True

    @property
    def _realised(self) -> Decimal:
        return sum((p.realised_pnl for p in self._positions.values()), Decimal(0))

    @property
    def _capital_in_use(self) -> Decimal:
        in_use = Decimal(0)
        for name in self._positions.keys() | self._on_their_way.keys():
            position = self._positions.get(name)
            reserved = self._on_their_way.get(name)
            in_use += max(
                position.capital_used if position else Decimal(0),
                reserved.capital if reserved else Decimal(0),
            )
        return in_use
