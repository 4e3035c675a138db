"""The result files of the existing system: metrics.json, tradelog.json, logs/user_actions.log.

They lie in the backend's state folder. Their faults are not repeated: the first form is read, the
win rate follows losses as well, and today's result starts anew each day.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from backend.projection import Trade
from backend.responses import LOCAL, iso_local, iso_utc

_FIRST: Final = {"totalTrades": 0, "winRate": 0, "lastTradeTime": "No trades yet"}


@dataclass(frozen=True)
class ResultFiles:
    """Write what was traded and what users did; `wall_ns` is the real clock."""

    folder: Path
    wall_ns: Callable[[], int]

    @property
    def metrics_path(self) -> Path:
        """Where metrics.json is."""
        return self.folder / "metrics.json"

    def begin(self) -> None:
        """Make the folder, and the metrics of nothing where there are none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.metrics_path.exists():
            _write(self.metrics_path, _FIRST)

    def add_trades(self, session: str, trades: Iterable[Trade]) -> None:
        """Add closed trades, each once however often it is told, and refresh the metrics.

        Raises ValueError where the trade log is damaged.
        """
        path = self.folder / "tradelog.json"
        log: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        known = {row["trade_id"] for row in log}
        fresh = [row for trade in trades if (row := _row(session, trade))["trade_id"] not in known]
        if not fresh:
            return
        log += fresh
        _write(path, log)
        _write(self.metrics_path, metrics_of(log, self._today()))

    def _today(self) -> str:
        return datetime.fromtimestamp(self.wall_ns() / 1e9, LOCAL).date().isoformat()

    def note_action(self, user_id: str, action_type: str, details: Mapping[str, Any]) -> None:
        """Append one line to the users' log; the caller puts no secret into the details.

        Raises OSError.
        """
        path = self.folder / "logs" / "user_actions.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "timestamp": iso_utc(self.wall_ns()),
            "user_id": user_id,
            "action_type": action_type,
            "details": dict(details),
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def metrics_of(log: list[dict[str, Any]], today: str) -> dict[str, Any]:
    """Return metrics.json for a trade log; `today` is a date, YYYY-MM-DD.

    In a replayed market the days are those of its candles: then today is the last trade's.
    """
    if not log:
        return dict(_FIRST)
    pnl = [float(row["pnl"]) for row in log]
    wins = sum(1 for value in pnl if value > 0)
    last = str(log[-1]["exit_time"])
    day = today if any(str(row["exit_time"]).startswith(today) for row in log) else last[:10]
    of_day = [row["pnl"] for row in log if str(row["exit_time"]).startswith(day)]
    return {
        "totalTrades": len(log),
        "winRate": round(100 * wins / len(log), 2),
        "lastTradeTime": last,
        "totalPnl": round(sum(pnl), 2),
        "averagePnlPerTrade": round(sum(pnl) / len(log), 2),
        "todayPnL": round(sum(of_day), 2),
        "wins": wins,
    }


def _row(session: str, trade: Trade) -> dict[str, Any]:
    return {
        "trade_id": f"{session}/{trade.trade_id}",
        "instrument": trade.instrument,
        "timeframe": trade.timeframe,
        "direction": trade.direction,
        "entry_price": trade.entry_price,
        "exit_price": trade.exit_price,
        "quantity": trade.quantity,
        "pnl": trade.pnl,
        "entry_time": iso_local(trade.entry_ns),
        "exit_time": iso_local(trade.exit_ns),
        "trade_type": trade.trade_type,
        "status": "Closed",
        "reason": trade.reason,
    }


def _write(path: Path, value: object) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
