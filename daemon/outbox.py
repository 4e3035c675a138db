"""Orders written down before they are sent, and reports until the bus has them.

Every change is on the disk when its method returns (SQLite, write-ahead log, synchronous=FULL), so
that after a power cut it is known of each order whether it can have reached the broker. What
follows from that is for the order gateway to say.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import msgspec

from actors.messages import FINAL_STATUSES, ExecutionReport, PlaceOrder
from daemon.errors import ConfigError
from daemon.reconciliation import Ledger

Stage = Literal["intent", "sent", "answered"]
Result = TypeVar("Result")

REMEDY = "once the broker shows no open order, move the file away"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE orders (
    client_order_id TEXT PRIMARY KEY,
    entry_id TEXT NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('intent', 'sent', 'answered')),
    is_final INTEGER NOT NULL DEFAULT 0,
    placed BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX unfinished_orders ON orders (client_order_id) WHERE is_final = 0;
CREATE TABLE reports (
    number INTEGER PRIMARY KEY,
    execution_id TEXT NOT NULL UNIQUE,
    client_order_id TEXT NOT NULL,
    is_published INTEGER NOT NULL DEFAULT 0,
    report BLOB NOT NULL
);
CREATE INDEX unpublished_reports ON reports (number) WHERE is_published = 0;
"""
# Not in the schema of the first release, which does not mind the table.
CANCELS = """
CREATE TABLE IF NOT EXISTS cancels (client_order_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class OutboxOrder(NamedTuple):
    """One order and how far it got."""

    order: PlaceOrder
    entry_id: str  # bus entry that asked for it
    stage: Stage  # intent: never sent; sent: may have arrived; answered: the broker has spoken
    is_final: bool


class Outbox:
    """The written-ahead orders of one account. Open it in one process only."""

    def __init__(self, path: Path | None) -> None:
        """Prepare; `open` does the work. Without a path it lives in memory, for a backtest."""
        self._path = path
        # One thread owns the connection: commits come one after the other, off the event loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self._connection: sqlite3.Connection | None = None
        self._counted = 0  # number of the last report that `_net` contains
        self._net: dict[str, int] = {}  # signed units by instrument
        self._entered: set[str] = set()  # decisions of which an entry has filled, or a part

    async def open(self) -> Self:
        """Open or create the file; raises ConfigError when it is not an outbox of this version."""
        await self._run(self._open)
        return self

    async def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        if self._connection is not None:
            await self._run(self._close)
        self._thread.shutdown()

    async def record_intent(self, order: PlaceOrder, entry_id: str) -> OutboxOrder | None:
        """Write the order down; return the one already there under its client order id, if any."""
        return await self._run(lambda: self._record_intent(order, entry_id))

    async def mark_sent(self, client_order_id: str) -> None:
        """Note, before the broker is called, that the order may have arrived from now on."""
        await self._run(lambda: self._move(client_order_id, "sent"))

    async def mark_answered(self, client_order_id: str) -> None:
        """Note that the broker took the order or refused it."""
        await self._run(lambda: self._move(client_order_id, "answered"))

    async def note_cancel(self, client_order_id: str) -> None:
        """Note, before the broker is asked, that the order is to be taken back."""
        await self._run(lambda: self._note_cancel(client_order_id))

    async def cancels_due(self) -> list[str]:
        """Return client order ids of sent orders that are to be taken back and are not final."""
        return await self._run(self._cancels_due)

    async def add_reports(
        self, reports: Iterable[ExecutionReport], answers: str | None = None
    ) -> int:
        """Keep the reports that are new and return how many were; a final one ends its order.

        answers: client order id that these reports answer, noted in the same commit.
        """
        return await self._run(lambda: self._add_reports(list(reports), answers))

    async def unpublished(self, limit: int = 256) -> list[ExecutionReport]:
        """Return reports that the bus has not confirmed, in the order they came."""
        return await self._run(lambda: self._unpublished(limit))

    async def mark_published(self, execution_ids: Iterable[str]) -> None:
        """Note that the bus has these reports."""
        await self._run(lambda: self._mark_published(list(execution_ids)))

    async def confirmed(self) -> list[tuple[str, str]]:
        """Return execution id and client order id of the reports that the bus has confirmed.

        In the order they came, which is that in which they were published.
        """
        return await self._run(self._confirmed)

    async def take_for_lost(self, execution_ids: Iterable[str]) -> int:
        """Note that the bus has these reports no more; return how many it was said to have."""
        return await self._run(lambda: self._take_for_lost(list(execution_ids)))

    async def count_unpublished(self) -> int:
        """Return how many reports the bus has not confirmed."""
        return await self._run(self._count_unpublished)

    async def has_report(self, execution_id: str) -> bool:
        """Tell whether a report is written down here."""
        return await self._run(lambda: self._has_report(execution_id))

    async def find(self, client_order_id: str) -> OutboxOrder | None:
        """Return one order, or None if it was never written down."""
        return await self._run(lambda: self._find(client_order_id))

    async def unfinished(self) -> list[OutboxOrder]:
        """Return the orders without a final report, in the order they were placed."""
        return await self._run(self._unfinished)

    async def every_order(self) -> list[OutboxOrder]:
        """Return all orders, in the order they were placed."""
        return await self._run(self._every_order)

    async def every_report(self) -> list[ExecutionReport]:
        """Return all reports, in the order they came."""
        return await self._run(self._every_report)

    async def held_before(self, order: PlaceOrder) -> int:
        """Return signed units of its instrument that were held before an entry began to fill.

        An entry is decided in a flat position: whoever decided it does not know of these.
        """
        return await self._run(lambda: self._held_before(order))

    async def ledger(self) -> Ledger:
        """Return what all that is written down here adds up to."""
        return await self._run(self._ledger)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the outbox is not open: await open() first")
        return self._connection

    def _open(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path or ":memory:", timeout=5.0)
        try:
            _prepare(connection, self._path)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ConfigError(f"outbox {self._path} cannot be used: {error}; {REMEDY}") from error
        except ConfigError:
            connection.close()
            raise
        self._connection = connection

    def _close(self) -> None:
        self._database.close()
        self._connection = None

    def _record_intent(self, order: PlaceOrder, entry_id: str) -> OutboxOrder | None:
        with self._database as database:
            added = database.execute(
                "INSERT INTO orders (client_order_id, entry_id, stage, placed)"
                " VALUES (?, ?, 'intent', ?) ON CONFLICT DO NOTHING",
                (order.client_order_id, entry_id, msgspec.json.encode(order)),
            ).rowcount
        return None if added else self._find(order.client_order_id)

    def _move(self, client_order_id: str, stage: Stage) -> None:
        with self._database as database:
            database.execute(
                "UPDATE orders SET stage = ? WHERE client_order_id = ?", (stage, client_order_id)
            )

    def _note_cancel(self, client_order_id: str) -> None:
        with self._database as database:
            database.execute(
                "INSERT INTO cancels (client_order_id) VALUES (?) ON CONFLICT DO NOTHING",
                (client_order_id,),
            )

    def _cancels_due(self) -> list[str]:
        rows = self._database.execute(
            "SELECT client_order_id FROM cancels JOIN orders USING (client_order_id)"
            " WHERE is_final = 0 AND stage != 'intent' ORDER BY client_order_id"
        )
        return [client_order_id for (client_order_id,) in rows]

    def _add_reports(self, reports: list[ExecutionReport], answers: str | None) -> int:
        added = 0
        with self._database as database:
            for report in reports:
                added += database.execute(
                    "INSERT INTO reports (execution_id, client_order_id, report)"
                    " VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (report.execution_id, report.client_order_id, msgspec.json.encode(report)),
                ).rowcount
                if report.status in FINAL_STATUSES:
                    database.execute(
                        "UPDATE orders SET is_final = 1 WHERE client_order_id = ?",
                        (report.client_order_id,),
                    )
            if answers is not None:
                database.execute(
                    "UPDATE orders SET stage = 'answered' WHERE client_order_id = ?", (answers,)
                )
        return added

    def _unpublished(self, limit: int) -> list[ExecutionReport]:
        rows = self._database.execute(
            "SELECT report FROM reports WHERE is_published = 0 ORDER BY number LIMIT ?", (limit,)
        )
        return [msgspec.json.decode(report, type=ExecutionReport) for (report,) in rows]

    def _mark_published(self, execution_ids: list[str]) -> None:
        with self._database as database:
            database.executemany(
                "UPDATE reports SET is_published = 1 WHERE execution_id = ?",
                [(execution_id,) for execution_id in execution_ids],
            )

    def _confirmed(self) -> list[tuple[str, str]]:
        return self._database.execute(
            "SELECT execution_id, client_order_id FROM reports WHERE is_published = 1"
            " ORDER BY number"
        ).fetchall()

    def _take_for_lost(self, execution_ids: list[str]) -> int:
        with self._database as database:
            return database.executemany(
                "UPDATE reports SET is_published = 0 WHERE execution_id = ? AND is_published = 1",
                [(execution_id,) for execution_id in execution_ids],
            ).rowcount

    def _count_unpublished(self) -> int:
        (count,) = self._database.execute(
            "SELECT count(*) FROM reports WHERE is_published = 0"
        ).fetchone()
        return int(count)

    def _has_report(self, execution_id: str) -> bool:
        row = self._database.execute(
            "SELECT 1 FROM reports WHERE execution_id = ?", (execution_id,)
        ).fetchone()
        return row is not None

    def _find(self, client_order_id: str) -> OutboxOrder | None:
        row = self._database.execute(
            "SELECT placed, entry_id, stage, is_final FROM orders WHERE client_order_id = ?",
            (client_order_id,),
        ).fetchone()
        return None if row is None else _order_of(row)

    def _unfinished(self) -> list[OutboxOrder]:
        rows = self._database.execute(
            "SELECT placed, entry_id, stage, is_final FROM orders WHERE is_final = 0"
        )
        return sorted(map(_order_of, rows), key=lambda row: row.order.placed_ns)

    def _every_order(self) -> list[OutboxOrder]:
        rows = self._database.execute("SELECT placed, entry_id, stage, is_final FROM orders")
        return sorted(map(_order_of, rows), key=lambda row: row.order.placed_ns)

    def _every_report(self) -> list[ExecutionReport]:
        rows = self._database.execute("SELECT report FROM reports ORDER BY number")
        return [msgspec.json.decode(report, type=ExecutionReport) for (report,) in rows]

    def _held_before(self, order: PlaceOrder) -> int:
        net = self._ledger().positions.get(order.instrument, 0)
        return 0 if order.decision_id in self._entered else net  # a further slice adds to its own

    def _ledger(self) -> Ledger:
        # One pass over what came since the last call: fills are never taken back.
        for number, encoded in self._database.execute(
            "SELECT number, report FROM reports WHERE number > ? ORDER BY number", (self._counted,)
        ):
            report = msgspec.json.decode(encoded, type=ExecutionReport)
            signed = report.last_quantity if report.side == "buy" else -report.last_quantity
            self._net[report.instrument] = self._net.get(report.instrument, 0) + signed
            self._counted = number
            row = self._find(report.client_order_id) if signed else None
            if row is not None and row.order.purpose == "entry":
                self._entered.add(row.order.decision_id)
        return Ledger(
            positions={name: units for name, units in self._net.items() if units},
            known=frozenset(self._net),
            unfinished={
                row.order.client_order_id: row.order.instrument for row in self._unfinished()
            },
        )


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )
    elif version != SCHEMA_VERSION:
        raise ConfigError(
            f"outbox {path} has version {version}, this program writes version {SCHEMA_VERSION}: "
            f"run the release that wrote it; or {REMEDY}"
        )
    connection.executescript(CANCELS)


def _order_of(row: tuple[bytes, str, Stage, int]) -> OutboxOrder:
    placed, entry_id, stage, is_final = row
    return OutboxOrder(
        msgspec.json.decode(placed, type=PlaceOrder), entry_id, stage, bool(is_final)
    )
