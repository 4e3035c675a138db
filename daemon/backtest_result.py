"""What a backtest came to: every fill, the value of the account at each bar, and what follows."""

import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from decimal import Decimal
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from actors.forecast_score import ForecastScore
from actors.messages import (
    ACTIONS,
    Action,
    Alert,
    AnyMessage,
    Bar,
    Decision,
    ExecutionReport,
    MarketContext,
    PlaceOrder,
    Position,
    RiskVerdict,
)
from daemon.plan import SessionPlan
from daemon.thinking_metrics import HRMMetrics, Thoughts, most_cycles_of
from hrm.config import HRMConfig

StoppedBy = Literal["end_of_data", "cancelled"]

PERIODS_PER_YEAR: Final = 252
"""The contract scales per-bar returns by the root of this, whatever the timeframe."""
_ALL_CHECKS: Final = 10_000_000  # more bars than any file has: every forecast counts
_NS_PER_SECOND = 1_000_000_000


class Trade(msgspec.Struct, frozen=True, kw_only=True):
    """One fill."""

    instrument: str
    event_ns: int
    action: Action  # what it did to the position
    price: float
    quantity: int  # units, unsigned
    pnl: float  # change of the realised result, charges included: an entry costs its brokerage
    position: int  # signed units held after it
    decision_id: str


class BacktestResult(msgspec.Struct, frozen=True, kw_only=True):
    """Results in currency units and percent. Values are per bar, oldest first."""

    instruments: tuple[str, ...]
    timeframe: str
    initial_capital: float
    final_capital: float
    total_pnl: float
    total_trades: int  # round trips
    win_rate: float  # percent of the round trips
    max_drawdown: float  # percent of the highest value before
    sharpe_ratio: float  # per-bar returns times the root of 252; 0 without variation
    total_reward: float  # sum of the trades' pnl
    charges: float
    trades: tuple[Trade, ...]
    portfolio_values: tuple[tuple[int, float], ...]  # (close_ns, value)
    hrm_metrics: HRMMetrics
    complexity_forecast: dict[str, dict[str, Any]]  # by instrument; {} where none could be checked
    bars: int
    decisions: int
    decisions_by_action: dict[str, int]
    failed_decisions: int
    refusals_by_rule: dict[str, int]
    alerts: dict[str, int]  # by runbook heading
    open_positions: dict[str, int]  # what could not be closed at the end; units
    stopped_by: StoppedBy
    model_digest: str
    no_model_reason: str
    seed: int
    fingerprint: str  # SHA-256 over all decisions and reports: equal runs have equal ones

    def contract(self) -> dict[str, Any]:
        """Return it as the web contract spells it: epoch seconds, action codes, plain numbers."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain | {
            "trades": [
                {
                    "timestamp": trade.event_ns // _NS_PER_SECOND,
                    "action": ACTIONS.index(trade.action),
                    "price": trade.price,
                    "pnl": trade.pnl,
                    "position": trade.position,
                }
                for trade in self.trades
            ],
            "portfolio_values": [
                {"timestamp": close_ns // _NS_PER_SECOND, "value": value}
                for close_ns, value in self.portfolio_values
            ],
        }


class Ledger:
    """Note what the messages of a backtest say, and add it up."""

    def __init__(self, initial_capital: float, model: HRMConfig | None) -> None:
        self._initial = initial_capital
        self._thoughts = Thoughts(most_cycles_of(model) if model else 0)
        self._positions: dict[str, Position] = {}
        self._prices: dict[str, Decimal] = {}
        self._purposes: dict[str, PlaceOrder] = {}
        # By instrument, oldest first: the fills whose positions have not been heard yet.
        self._fills: defaultdict[str, deque[ExecutionReport]] = defaultdict(deque)
        self._trades: list[Trade] = []
        self._told = 0  # trades handed out with a bar
        self._values: list[tuple[int, float]] = []
        self._closed: list[tuple[Bar, Decision | None]] = []
        self._actions: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._alerts: Counter[str] = Counter()
        self._failed = 0
        self._forecasts: dict[str, ForecastScore] = {}
        self._hash = sha256()
        self.bars = 0

    def note(self, message: AnyMessage) -> None:
        """Take one message of the session, in the order they came about."""
        match message:
            case Bar():
                self.bars += 1
                self._prices[message.instrument] = message.close
                self._closed.append((message, None))
            case MarketContext(instrument=name, checked=check):
                if check is not None:
                    self._forecasts.setdefault(name, ForecastScore(_ALL_CHECKS)).add(check)
            case Decision():
                self._note_decision(message)
            case RiskVerdict(approved=False, rules=rules):
                self._refusals.update(rule.rule for rule in rules if not rule.passed)
            case PlaceOrder():
                self._purposes[message.client_order_id] = message
            case ExecutionReport():
                self._hash.update(msgspec.json.encode(message))
                if message.last_quantity:
                    self._fills[message.instrument].append(message)
            case Position():
                self._note_position(message)
            case Alert():
                self._alerts[message.runbook] += 1
            case _:
                pass

    def take_closed(self) -> list[tuple[Bar, Decision | None]]:
        """Return the bars closed since the last call, with what was decided on each."""
        closed, self._closed = self._closed, []
        return closed

    def close_bar(self, bar: Bar) -> tuple[float, tuple[Trade, ...]]:
        """Write down the value of the account; return it with the trades since the bar before."""
        value = self._value()
        if self._values and self._values[-1][0] == bar.close_ns:
            self._values.pop()  # another instrument's bar of the same instant
        self._values.append((bar.close_ns, value))
        fresh = tuple(self._trades[self._told :])
        self._told = len(self._trades)
        return value, fresh

    def result(self, plan: SessionPlan, stopped_by: StoppedBy) -> BacktestResult:
        """Add everything up; the last value is that after the end, with everything closed."""
        final = self._value()
        if self._values:
            self._values[-1] = (self._values[-1][0], final)
        held = self._positions.values()
        trips = sum(position.round_trips for position in held)
        wins = sum(position.winning_round_trips for position in held)
        values = [self._initial, *(value for _, value in self._values)]
        return BacktestResult(
            instruments=tuple(market.instrument for market in plan.markets),
            timeframe=plan.markets[0].timeframe,
            initial_capital=self._initial,
            final_capital=final,
            total_pnl=round(final - self._initial, 4),
            total_trades=trips,
            win_rate=100.0 * wins / trips if trips else 0.0,
            max_drawdown=max_drawdown_percent(values),
            sharpe_ratio=sharpe_ratio(values),
            total_reward=round(math.fsum(trade.pnl for trade in self._trades), 4),
            charges=float(sum((position.charges for position in held), Decimal(0))),
            trades=tuple(self._trades),
            portfolio_values=tuple(self._values),
            hrm_metrics=self._thoughts.metrics(),
            complexity_forecast={
                name: score.summary() for name, score in sorted(self._forecasts.items())
            },
            bars=self.bars,
            decisions=sum(self._actions.values()),
            decisions_by_action=dict(self._actions),
            failed_decisions=self._failed,
            refusals_by_rule=dict(self._refusals),
            alerts=dict(self._alerts),
            open_positions={p.instrument: p.net_quantity for p in held if p.net_quantity},
            stopped_by=stopped_by,
            model_digest=plan.model_digest,
            no_model_reason=plan.no_model_reason,
            seed=plan.seed,
            fingerprint=self._hash.hexdigest(),
        )

    def _note_decision(self, decision: Decision) -> None:
        self._hash.update(msgspec.json.encode(decision))
        self._actions[decision.action] += 1
        self._failed += decision.failed
        self._thoughts.note(decision)
        self._closed = [
            (bar, decision)
            if (bar.instrument, bar.close_ns) == (decision.instrument, decision.bar_close_ns)
            else (bar, known)
            for bar, known in self._closed
        ]

    def _note_position(self, position: Position) -> None:
        before = self._positions.get(position.instrument)
        self._positions[position.instrument] = position
        fills = self._fills[position.instrument]
        if not fills:
            return
        fill = fills.popleft()
        order = self._purposes[fill.client_order_id]
        realised = position.realised_pnl - (before.realised_pnl if before else Decimal(0))
        trade = Trade(
            instrument=fill.instrument,
            event_ns=fill.event_ns,
            action=_action(order),
            price=float(fill.last_price),
            quantity=fill.last_quantity,
            pnl=float(realised),
            position=position.net_quantity,
            decision_id=order.decision_id,
        )
        self._trades.append(trade)

    def _value(self) -> float:
        """Return the capital with the open positions at the close of their last bars."""
        value = Decimal(repr(self._initial))
        for position in self._positions.values():
            value += position.realised_pnl
            if position.net_quantity:
                price = self._prices[position.instrument]
                value += position.net_quantity * (price - position.average_price)
        return float(round(value, 4))


def max_drawdown_percent(values: Sequence[float]) -> float:
    """Return the deepest fall from the highest value before, in percent of that."""
    peak, deepest = values[0], 0.0
    for value in values:
        peak = max(peak, value)
        deepest = max(deepest, (peak - value) / peak)
    return 100.0 * deepest


def sharpe_ratio(values: Sequence[float]) -> float:
    """Return mean by standard deviation of the per-bar returns, times the root of 252.

    0 where nothing varies, and behind a value of 0 or below, from where no return can be told.
    """
    returns = [after / before - 1.0 for before, after in pairwise(values) if before > 0.0]
    if len(returns) < 2 or (deviation := statistics.stdev(returns)) == 0.0:
        return 0.0
    return statistics.fmean(returns) / deviation * math.sqrt(PERIODS_PER_YEAR)


def _action(order: PlaceOrder) -> Action:
    if order.purpose == "entry":
        return "BUY_LONG" if order.side == "buy" else "SELL_SHORT"
    return "CLOSE_LONG" if order.side == "sell" else "CLOSE_SHORT"
