"""The daemon as its users see it: a fold of what is on the bus, and the frames that follow.

Pure: entries in, frames out. Where entries come from and where frames go is for reader.py and
hub.py; what counts as a session is the daemon's to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Self

from actors.desk import is_manual
from actors.messages import (
    Alert,
    Bar,
    Decision,
    ExecutionReport,
    Heartbeat,
    Message,
    OptionChain,
    OrderIntent,
    PlaceOrder,
    Position,
    Tick,
    TimeEvent,
    TradingSession,
)
from actors.positions import summed
from backend.hrm_metrics import WINDOW, hrm_metrics
from backend.place import Place
from backend.responses import (
    EXIT_WORDS,
    INACTIVE,
    fetch_seconds,
    insights,
    iso_local,
    number,
    timeframe_seconds,
)
from daemon.bus import Envelope
from daemon.thinking_metrics import Thoughts

WATCHED = (
    Tick.stream,
    TimeEvent.stream,
    OptionChain.stream,
    Bar.stream,
    Decision.stream,
    OrderIntent.stream,
    PlaceOrder.stream,
    ExecutionReport.stream,
    Position.stream,
    TradingSession.stream,
    "answer",
    Heartbeat.stream,
    Alert.stream,
)
REMEMBERED = (
    OrderIntent.stream,
    PlaceOrder.stream,
    ExecutionReport.stream,
    Position.stream,
    TradingSession.stream,
)
"""Streams that are folded from their first entry on: what was traded, and for whom."""

_NOT_CLOSED = "Failed to close position for "
_NS = 1_000_000_000
_DEFAULT_TIMEFRAME = "5"


class Frame(NamedTuple):
    """One message to sockets: of a user, or of all whose session trades the instrument."""

    body: dict[str, Any]
    instrument: str = ""
    user_id: str = ""
    latest_of: str = ""  # a newer frame of the same name replaces it where a client is slow

    def key_of(self, session: TradingSession) -> tuple[object, ...]:
        """Return what the body depends on of a session: it is the same for all that share it."""
        if self.body["type"] != "stats_update":
            return ()
        return session.realised_before, session.round_trips_before, session.wins_before


def without_replaced(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames but those that a newer one of their name replaces.

    A frame that nothing replaces keeps its place: an older one before it is not replaced by one
    behind it. So a reader that fell behind catches up as a slow client does.
    """
    kept: list[Frame] = []
    seen: set[str] = set()
    for frame in reversed(frames):
        if not frame.latest_of:
            seen.clear()
        elif frame.latest_of in seen:
            continue
        else:
            seen.add(frame.latest_of)
        kept.append(frame)
    return kept[::-1]


@dataclass(frozen=True, kw_only=True)
class Trade:
    """One closed trade."""

    trade_id: str
    instrument: str
    timeframe: str
    direction: Literal["Long", "Short"]
    entry_price: float
    exit_price: float
    quantity: int  # lots
    pnl: float  # rupees, net of charges
    entry_ns: int
    exit_ns: int
    trade_type: Literal["Automated", "Manual"]
    reason: str


@dataclass(slots=True)
class _Trip:
    """An open position from its first fill on."""

    opened: Position
    realised_before: Decimal
    exit_units: int = 0
    exit_value: Decimal = Decimal(0)


@dataclass(slots=True)
class _Candle:
    """The bar that is still open, as the ticks made it."""

    open_ns: int
    open: Decimal
    high: Decimal
    low: Decimal


@dataclass(slots=True)
class Projection:
    """Fold entries of one session of the daemon; ask it what is, or take the frames that follow."""

    place: Place
    ticks: dict[str, Tick] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)  # by what they are a view of
    sessions: dict[str, TradingSession] = field(default_factory=dict)
    beats: dict[str, Heartbeat] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    now_ns: int = 0  # market time
    _held: dict[str, Position] = field(default_factory=dict)  # by instrument, options too
    _premiums: dict[str, Decimal] = field(default_factory=dict)  # of options
    _lots: dict[str, int] = field(default_factory=dict)  # ordered, by decision id
    _exits: dict[str, str] = field(default_factory=dict)  # exit orders: id -> instrument
    _trips: dict[str, _Trip] = field(default_factory=dict)
    _candles: dict[str, _Candle] = field(default_factory=dict)
    _thoughts: dict[str, Thoughts] = field(default_factory=dict)

    def fold(self, message: Message) -> Iterator[Frame]:
        """Take one message; yield what the sockets should hear of it."""
        match message:
            case Tick():
                yield from self._take_tick(message)
            case TimeEvent(now_ns=now_ns):
                self.now_ns = max(self.now_ns, now_ns)
            case Decision():
                self.now_ns = max(self.now_ns, message.time_ns)
                self.decisions[message.instrument] = message
                yield Frame(
                    {"type": "stats_update"} | self.stats(message.instrument), message.instrument
                )
                yield from self._take_thought(message)
            case OptionChain() | OrderIntent() | PlaceOrder():
                self._note(message)
            case ExecutionReport():
                self._take_report(message)
            case Position():
                yield from self._take_position(message)
            case TradingSession():
                yield from self._take_session(message)
            case Heartbeat():
                self.beats[message.actor] = message
            case Alert(severity="critical", text=text) if text.startswith(_NOT_CLOSED):
                yield Frame({"type": "error", "message": text}, message.instrument or "")
            case _:
                pass

    def restore(self, latest: Envelope) -> None:
        """Take the latest message of a stream without telling anybody."""
        for _ in self.fold(latest.message):
            pass

    def carry_on(self, before: Self) -> None:
        """Take over from a view of the same session what no stream keeps: prices and thoughts."""
        self.ticks = before.ticks
        self.now_ns = max(self.now_ns, before.now_ns)
        self._premiums = before._premiums
        self._candles = before._candles
        self._thoughts = before._thoughts

    # What is

    def is_alive(self, wall_ns: int) -> bool:
        """Tell whether the daemon's risk actor gave a sign of life lately."""
        allowed_ns = int(self.place.settings.monitoring.silent_after_seconds * _NS)
        beat = self.beats.get("risk")
        return beat is not None and beat.at_ns > wall_ns - allowed_ns

    def session_of(self, user_id: str) -> TradingSession | None:
        """Return the user's session, running or failed; None after its stop."""
        session = self.sessions.get(user_id)
        return None if session is None or session.status == "stopped" else session

    def price_of(self, instrument: str) -> Decimal | None:
        """Return the last price, or None before the first."""
        tick = self.ticks.get(instrument)
        return tick.last_price if tick else None

    def lots_of(self, decision: Decision | None) -> float:
        """Return the lots that were ordered because of a decision."""
        return float(self._lots.get(decision.id, 0)) if decision else 0.0

    def status(self, user_id: str) -> dict[str, Any]:
        """Return the user's status as the second frame of a socket carries it."""
        session = self.session_of(user_id)
        if session is None:
            return dict(INACTIVE)
        seconds = fetch_seconds(session.timeframe)
        now_ns = self.now_ns or self.place.plan.created_ns
        next_ns = self.place.next_close_ns(session.instrument, self._timeframe_of(session), now_ns)
        status: dict[str, Any] = {
            "status": session.status,
            "is_running": session.status == "running",
            "instrument": session.instrument,
            "timeframe": session.timeframe,
            "option_strategy": session.option_strategy,
            "fetchIntervalSeconds": seconds,
            "nextFetchTimestamp": iso_local(next_ns),
        }
        numbers = self.stats(session.instrument, session)
        numbers.pop("timestamp")
        status |= numbers
        if session.trading_mode == "PAPER":
            status["open_positions"] = self._open_positions
            position = self.positions.get(session.instrument)
            trips = position.round_trips if position else 0
            status["closed_positions"] = trips - session.round_trips_before
        return status

    def _timeframe_of(self, session: TradingSession) -> str:
        """Return the session's bar length; one that failed for want of it has the daemon's."""
        if session.status == "running":
            return session.timeframe
        return self.place.timeframes.get(session.instrument, _DEFAULT_TIMEFRAME)

    def stats(self, instrument: str, session: TradingSession | None = None) -> dict[str, Any]:
        """Return the numbers of a stats_update; counted from the session's start where given."""
        position = self.positions.get(instrument)
        realised = position.realised_pnl if position else Decimal(0)
        trips = position.round_trips if position else 0
        wins = position.winning_round_trips if position else 0
        if session is not None:
            realised -= session.realised_before
            trips -= session.round_trips_before
            wins -= session.wins_before
        mode = self.place.mode
        instrument_lot = self.place.instrument(instrument)
        lot = instrument_lot.lot_size if instrument_lot else 1
        net = position.view / (position.lot_size or lot) if position else 0.0
        numbers: dict[str, Any] = {
            "current_pnl": round(float(realised + self._unrealised(instrument)), 2),
            "today_trades": trips,
            "win_rate": round(100 * wins / trips, 2) if trips else 0.0,
            "current_price": number(self.price_of(instrument)),
            "position": self._open_positions if mode == "PAPER" else net,
            "trading_mode": mode,
            "timestamp": iso_local(self.now_ns),
        }
        if mode == "PAPER":
            numbers["available_capital"] = round(float(self.available_capital), 2)
        return numbers | insights(self.decisions.get(instrument))

    def for_session(self, frame: Frame, session: TradingSession) -> dict[str, Any]:
        """Return a frame's body with the numbers that count from a user's own start."""
        if frame.body["type"] != "stats_update":
            return frame.body
        return frame.body | self.stats(session.instrument, session)

    @property
    def available_capital(self) -> Decimal:
        """Rupees of the simulated account that no position has taken."""
        capital = self.place.settings.risk_limits.initial_capital
        for position in self.positions.values():
            capital += position.realised_pnl - position.capital_used
        return capital

    def open_positions(self, user_id: str) -> list[dict[str, Any]]:
        """Return the open positions that the user's session shows."""
        session = self.session_of(user_id)
        if session is None:
            return []
        position = self.positions.get(session.instrument)
        return [self._position_data(position)] if position and position.net_quantity else []

    @property
    def _open_positions(self) -> int:
        return sum(1 for position in self.positions.values() if position.net_quantity)

    def _unrealised(self, instrument: str) -> Decimal:
        position = self.positions.get(instrument)
        if position is None or not position.net_quantity:
            return Decimal(0)
        price = self._price_of_held(position)
        if price is None:
            return Decimal(0)
        return (price - position.average_price) * position.net_quantity

    def _price_of_held(self, position: Position) -> Decimal | None:
        if position.underlying:
            return self._premiums.get(position.instrument)
        return self.price_of(position.instrument)

    def _note(self, message: OptionChain | OrderIntent | PlaceOrder) -> None:
        """Remember what nobody is told of: premiums, and what was ordered."""
        match message:
            case OptionChain(quotes=quotes):
                for quote in quotes:
                    self._premiums[quote.contract.symbol] = quote.bid or quote.last_price
            case OrderIntent():
                self._lots[message.decision_id] = abs(message.quantity) // self._lot_of(message)
            case PlaceOrder(purpose="exit"):
                self._exits[message.client_order_id] = message.instrument
            case PlaceOrder():
                pass

    def _lot_of(self, intent: OrderIntent) -> int:
        held = self._held.get(intent.instrument)
        if intent.contract is not None:
            return intent.contract.lot_size
        if held is not None and held.lot_size:
            return held.lot_size
        return self.place.catalogue[intent.instrument].lot_size

    # What happens

    def _take_tick(self, tick: Tick) -> Iterator[Frame]:
        self.now_ns = max(self.now_ns, tick.event_ns)
        before = self.ticks.get(tick.instrument)
        if tick.last_price <= 0 or (before and tick.event_ns < before.event_ns):
            return
        self.ticks[tick.instrument] = tick
        candle = self._candle_with(tick)
        name = tick.instrument
        price = number(tick.last_price)
        open_s = str(candle.open_ns // _NS)
        data = {
            "symbol": name,
            "price": price,
            "volume": float(tick.volume_today),
            "timestamp": open_s,
            "time_iso": iso_local(tick.event_ns),
            "bid": number(tick.bid) or price,
            "ask": number(tick.ask) or price,
            "high": number(candle.high),
            "low": number(candle.low),
            "open": number(candle.open),
        }
        # Named by its bar: the last tick of a bar, which closes its candle, is never left out.
        yield Frame({"type": "tick", "data": data}, name, latest_of=f"tick:{name}:{open_s}")
        position = self.positions.get(name)
        if position is not None and position.net_quantity:
            if before is not None and before.last_price == tick.last_price:
                return
            yield Frame(
                {"type": "position_update", "data": self._position_data(position)},
                name,
                latest_of=f"position:{name}",
            )

    def _take_thought(self, decision: Decision) -> Iterator[Frame]:
        """Yield how the model thinks, if it did think."""
        name = decision.instrument
        if not (decision.cycles and self.place.most_cycles):
            return
        if name not in self._thoughts:
            self._thoughts[name] = Thoughts(self.place.most_cycles, WINDOW)
        thoughts = self._thoughts[name]
        thoughts.note(decision)
        limits = self.place.settings.monitoring
        body = hrm_metrics(thoughts, decision, self.beats.get("reasoning"), limits)
        yield Frame(body, name, latest_of=f"hrm_metrics:{name}")

    def _candle_with(self, tick: Tick) -> _Candle:
        """Return the bar the tick belongs to, with the tick in it."""
        name, price = tick.instrument, tick.last_price
        timeframe = self.place.timeframes.get(name, _DEFAULT_TIMEFRAME)
        market = self.place.catalogue[name].session
        candle = self._candles.get(name)
        if self.place.calendar.phase(market, tick.event_ns) == "closed":
            bar_ns = timeframe_seconds(timeframe) * _NS
            open_ns = tick.event_ns // bar_ns * bar_ns
        else:
            open_ns = self.place.calendar.bar_open_ns(market, timeframe, tick.event_ns)
        if candle is None or open_ns > candle.open_ns:
            candle = self._candles[name] = _Candle(open_ns, price, price, price)
        candle.high = max(candle.high, price)
        candle.low = min(candle.low, price)
        return candle

    def _take_report(self, report: ExecutionReport) -> None:
        held = self._held.get(report.instrument)
        trip = self._trips.get(held.subject if held else report.instrument)
        if trip is None or report.client_order_id not in self._exits:
            return
        trip.exit_units += report.last_quantity
        trip.exit_value += report.last_price * report.last_quantity

    def _take_position(self, news: Position) -> Iterator[Frame]:
        name = news.subject
        before = self.positions.get(name)
        self._held[news.instrument] = news
        position = summed(self._held.values(), name) or news
        self.positions[name] = position
        trip = self._trips.get(name)
        if position.net_quantity and trip is None:
            realised = before.realised_pnl if before else Decimal(0)
            self._trips[name] = _Trip(position, realised)
            yield from self._executed(position, position, 0.0)
        elif trip is not None and abs(position.net_quantity) > abs(trip.opened.net_quantity):
            trip.opened = position  # the rest of an entry that fills in parts, or in slices
        if position.net_quantity:
            yield Frame({"type": "position_update", "data": self._position_data(position)}, name)
        elif trip is not None:
            del self._trips[name]
            trade = self._closed(trip, position)
            self.trades.append(trade)
            yield from self._executed(position, trip.opened, trade.pnl)
            yield Frame({"type": "position_update", "data": self._closed_data(trade)}, name)

    def _executed(self, now: Position, opened: Position, pnl: float) -> Iterator[Frame]:
        """Yield the marker of an automated trade: it opened, or it is closed now."""
        if is_manual(opened.decision_id):
            return
        is_long = opened.view > 0
        is_exit = not now.net_quantity
        action = (
            ("CLOSE_LONG" if is_long else "CLOSE_SHORT")
            if is_exit
            else "BUY"
            if is_long
            else "SELL"
        )
        decision = self.decisions.get(now.subject)
        trade_info = {
            "decision_id": opened.decision_id,
            "quantity": self._lots_of(opened),
            "reason": now.last_exit_reason if is_exit else "DECISION",
        }
        price = self._trips_price(now, opened)
        body = {
            "type": "trade_executed",
            "action": action,
            "price": price,
            "pnl": pnl,
            "reward": pnl,
            "timestamp": iso_local(now.updated_ns),
            "trade_info": trade_info,
            "trading_mode": self.place.mode,
        }
        yield Frame(body | insights(decision), now.subject)

    def _trips_price(self, now: Position, opened: Position) -> float:
        if now.net_quantity:
            return number(now.average_price)
        return self.trades[-1].exit_price if self.trades else number(opened.average_price)

    def _closed(self, trip: _Trip, now: Position) -> Trade:
        opened = trip.opened
        last = self._price_of_held(now) or opened.average_price
        exit_price = trip.exit_value / trip.exit_units if trip.exit_units else last
        return Trade(
            trade_id=f"{opened.decision_id}#{now.round_trips}",
            instrument=now.subject,
            timeframe=self.place.timeframes.get(now.subject, ""),
            direction="Long" if opened.view > 0 else "Short",
            entry_price=number(opened.average_price),
            exit_price=round(number(exit_price), 4),
            quantity=self._lots_of(opened),
            pnl=round(float(now.realised_pnl - trip.realised_before), 2),
            entry_ns=opened.entry_ns or opened.updated_ns,
            exit_ns=now.updated_ns,
            trade_type="Manual" if is_manual(opened.decision_id) else "Automated",
            reason=EXIT_WORDS.get(now.last_exit_reason, now.last_exit_reason),
        )

    def _take_session(self, session: TradingSession) -> Iterator[Frame]:
        self.now_ns = max(self.now_ns, session.changed_ns)
        self.sessions[session.user_id] = session
        user_id = session.user_id
        if session.status == "running":
            yield Frame(started(session), user_id=user_id)
        elif session.status == "failed":
            text = f"Failed to start live trading: {session.reason}"
            yield Frame({"type": "error", "message": text}, user_id=user_id)
        else:
            numbers = self.stats(session.instrument, session)
            word = "Paper" if session.trading_mode == "PAPER" else "Real"
            body = {
                "type": "stopped",
                "message": f"{word} trading stopped",
                "final_pnl": numbers["current_pnl"],
                "total_trades": numbers["today_trades"],
                "trading_mode": session.trading_mode,
            }
            yield Frame(body, user_id=user_id)

    def _lots_of(self, position: Position) -> int:
        lot = position.lot_size or self.place.catalogue[position.instrument].lot_size
        return max(1, abs(position.net_quantity) // lot)

    def _position_data(self, position: Position) -> dict[str, Any]:
        name = position.subject
        trip = self._trips.get(name)
        entry_ns = position.entry_ns or (trip.opened.updated_ns if trip else position.updated_ns)
        return {
            "instrument": name,
            "direction": "Long" if position.view > 0 else "Short",
            "entryPrice": number(position.average_price),
            "quantity": self._lots_of(position),
            "stopLoss": number(position.trailing_stop_price or position.stop_price),
            "targetPrice": number(position.target_price),
            "currentPnl": round(float(self._unrealised(name)), 2),
            "tradeType": "Manual" if is_manual(position.decision_id) else "Automated",
            "isOpen": True,
            "entryTime": iso_local(entry_ns),
            "tradingMode": self.place.mode,
        } | insights(self.decisions.get(name))

    def _closed_data(self, trade: Trade) -> dict[str, Any]:
        return {
            "instrument": trade.instrument,
            "direction": trade.direction,
            "entryPrice": trade.entry_price,
            "quantity": trade.quantity,
            "stopLoss": 0.0,
            "targetPrice": 0.0,
            "currentPnl": 0.0,
            "tradeType": trade.trade_type,
            "isOpen": False,
            "entryTime": iso_local(trade.entry_ns),
            "tradingMode": self.place.mode,
            "exitPrice": trade.exit_price,
            "exitTime": iso_local(trade.exit_ns),
            "pnl": trade.pnl,
            "reason": trade.reason,
        } | insights(self.decisions.get(trade.instrument))


def started(session: TradingSession) -> dict[str, Any]:
    """Return the frame that tells a page that trading is on."""
    word = "Paper" if session.trading_mode == "PAPER" else "Real"
    return {
        "type": "started",
        "message": f"{word} trading started",
        "instrument": session.instrument,
        "timeframe": session.timeframe,
        "option_strategy": session.option_strategy,
        "trading_mode": session.trading_mode,
    }
