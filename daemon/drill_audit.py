"""Drill audit: the exchange's books, our log and the actors' positions, laid side by side."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from actors.messages import ExecutionReport
from daemon.brokers.fyers_books import own_tag
from daemon.brokers.fyers_simulator import FyersSimulator
from daemon.brokers.fyers_simulator.matching import EventKind, Exchange
from daemon.fyers_connection import FyersConnection
from daemon.outbox import OutboxOrder
from daemon.venue import Books

_AGREEMENT_S: Final = 30.0
_LOOK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Fill:
    """One trade of the exchange."""

    id: str
    tag: str
    symbol: str
    signed: int  # units


class Witness:
    """Note every order and every trade at the exchange itself, where no fault reaches."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.orders: dict[str, str] = {}  # the exchange's id -> tag
        self.fills: dict[str, Fill] = {}
        exchange.listeners.append(self._listen)

    def _listen(self, kind: EventKind, event: dict[str, Any]) -> None:
        if kind == "orders":
            self.orders[event["id"]] = own_tag(event.get("ordertag"))
        elif kind == "trades":
            trade = self._exchange.trades[-1]
            order = trade.order
            self.fills[trade.id] = Fill(
                trade.id, order.tag, order.contract.symbol, trade.quantity * order.side
            )

    @property
    def duplicates(self) -> list[str]:
        """Return the tags that stand on more than one order."""
        counts = Counter(tag for tag in self.orders.values() if tag)
        return sorted(tag for tag, count in counts.items() if count > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What each side says at the end: the exchange, the log, and whether the two agree."""

    witness: Witness
    orders: list[OutboxOrder]
    reports: list[ExecutionReport]
    positions: dict[str, dict[str, int]]  # instrument -> who says so -> units
    faults_fired: dict[str, int]
    agreed: bool
    settled: bool


async def audit(
    books: Books, simulator: FyersSimulator, witness: Witness, connection: FyersConnection
) -> dict[str, Any]:
    """Wait until log and broker agree, then compare everything; `passed` is the verdict."""
    began_s = asyncio.get_running_loop().time()
    agreed = await _agreement(books, simulator)
    agreed_after_s = asyncio.get_running_loop().time() - began_s
    settled = await books.settle()
    sides = Sides(
        witness=witness,
        orders=await books.outbox.every_order(),
        reports=await books.outbox.every_report(),
        positions=await _positions(books, simulator, connection),
        faults_fired=dict(sorted(simulator.faults.fired.items())),
        agreed=agreed,
        settled=settled,
    )
    return compare(sides) | {
        "agreed_after_s": round(agreed_after_s, 3),
        "logins": connection.logins,
        "connections": connection.connections,
    }


def compare(sides: Sides) -> dict[str, Any]:
    """Return what differs, and the verdict; a drill that tried nothing does not pass.

    lost: fills at the exchange that the log does not have. phantom_positions: fills in the log that
    the exchange never made.
    """
    witness = sides.witness
    ours = {one.execution_id for one in sides.reports if one.last_quantity}
    made = {f"trade:{id_}" for id_ in witness.fills}
    unfinished = [row.order.client_order_id for row in sides.orders if not row.is_final]
    are_equal = all(len(set(units.values())) == 1 for units in sides.positions.values())
    problems = {
        "no order of ours reached the exchange: nothing was tried": not any(
            witness.orders.values()
        ),
        "no fault has happened: nothing was tried": not sides.faults_fired,
        "log and broker do not agree": not sides.agreed,
        "the session has not come to rest": not sides.settled,
        "fills are lost": bool(made - ours),
        "orders are doubled": bool(witness.duplicates),
        "the log has fills that were never made": bool(ours - made),
        "positions differ": not are_equal,
        "orders have no end": bool(unfinished),
    }
    return {
        "passed": not any(problems.values()),
        "problems": [text for text, is_so in problems.items() if is_so],
        "lost": len(made - ours),
        "duplicate_orders": len(witness.duplicates),
        "phantom_positions": len(ours - made),
        "positions_equal": are_equal,
        "positions": sides.positions,
        "agreed": sides.agreed,
        "orders": len(sides.orders),
        "orders_at_broker": len(witness.orders),
        "fills_at_broker": len(made),
        "unfinished": unfinished,
        "outcomes": dict(sorted(Counter(report.status for report in sides.reports).items())),
        "faults_fired": sides.faults_fired,
    }


async def _agreement(books: Books, simulator: FyersSimulator) -> bool:
    """Compare again and again until both agree and nothing is open; False when they never do."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_AGREEMENT_S):
            while True:
                await simulator.advance(2)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await books.gateway.reconcile_now()
                outcome = books.gateway.reconciliation
                if outcome and outcome.agreed and not outcome.unsettled and books.gateway.is_idle():
                    return True
                await asyncio.sleep(0.05)
    return False


async def _positions(
    books: Books, simulator: FyersSimulator, connection: FyersConnection
) -> dict[str, dict[str, int]]:
    """Return the units of each instrument by who says so."""
    log = (await books.outbox.ledger()).positions
    actors = await books.positions()
    return {
        one.symbol: {
            "broker": simulator.portfolio.net(one.exchange_symbol),
            "log": log.get(one.symbol, 0),
            "actors": actors[one.symbol].net_quantity if one.symbol in actors else 0,
        }
        for one in connection.instruments
    }
