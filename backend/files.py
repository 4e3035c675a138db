"""The result files of the existing system: metrics.json, tradelog.json, logs/user_actions.log.

Results lie in the state folder of the daemon that traded, under `backend/`, a folder per mode: what
a demo or a paper daemon traded never counts as the operator's own. The faults of the existing files
are not repeated: the first form is read, the win rate follows losses as well, and today's result
starts anew each day.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.place import Place
from backend.projection import Trade
from backend.responses import iso_local, iso_utc
from daemon.logs import get_logger

_FIRST: Final = {"totalTrades": 0, "winRate": 0, "lastTradeTime": "No trades yet"}
_LOG_NAME: Final = "tradelog.json"


@dataclass(frozen=True)
class ResultFiles:
    """Write what was traded and what users did; `wall_ns` is the real clock."""

    folder: Path  # of what users did
    wall_ns: Callable[[], int]

    def add_trades(self, place: Place, trades: Iterable[Trade]) -> None:
        """Add closed trades, each once however often it is told, and refresh the metrics.

        A damaged trade log is set aside and begun anew. Raises OSError.
        """
        folder = results_folder(place)
        folder.mkdir(parents=True, exist_ok=True)
        log = self._rows(folder / _LOG_NAME)
        known = {row["trade_id"] for row in log}
        rows = [_row(place.plan.session, trade) for trade in trades]
        fresh = [row for row in rows if row["trade_id"] not in known]
        if fresh:
            log += fresh
            _write(folder / _LOG_NAME, log)
        _write(metrics_path(place), metrics_of(log))

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        """Return the rows of a trade log; none where it is new or had to be set aside."""
        if not path.exists():
            return []
        try:
            return _checked(json.loads(path.read_text()))
        except (ValueError, RecursionError) as error:
            moment = iso_utc(self.wall_ns()).replace(":", "")
            aside = path.with_name(f"{path.stem}.damaged-{moment}.json")
            path.replace(aside)
            get_logger(part="files").error(
                "trade log damaged: set aside and begun anew", kept_as=str(aside), reason=str(error)
            )
            return []

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


def results_folder(place: Place) -> Path:
    """Return where the results of a daemon's mode lie."""
    return place.state_dir / "backend" / place.plan.mode


def metrics_path(place: Place) -> Path:
    """Return where metrics.json is."""
    return results_folder(place) / "metrics.json"


def metrics_of(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return metrics.json for a trade log; `todayPnL` is of the last trade's day."""
    if not log:
        return dict(_FIRST)
    pnl = [float(row["pnl"]) for row in log]
    wins = sum(1 for value in pnl if value > 0)
    last: str = log[-1]["exit_time"]
    of_day = [row["pnl"] for row in log if row["exit_time"].startswith(last[:10])]
    return {
        "totalTrades": len(log),
        "winRate": round(100 * wins / len(log), 2),
        "lastTradeTime": last,
        "totalPnl": round(sum(pnl), 2),
        "averagePnlPerTrade": round(sum(pnl) / len(log), 2),
        "todayPnL": round(sum(of_day), 2),
        "wins": wins,
    }


def metrics_on(place: Place | None, now_ns: int) -> dict[str, Any]:
    """Return the metrics as they stand at an instant of the market; at first those of nothing.

    The file is written at a close, so that its `todayPnL` is that of an earlier day until today's
    first. Raises OSError, and ValueError where the file is damaged.
    """
    metrics: Any = dict(_FIRST) if place is None else json.loads(metrics_path(place).read_text())
    if not isinstance(metrics, dict) or "lastTradeTime" not in metrics:
        raise ValueError("metrics.json holds no metrics")
    if not str(metrics["lastTradeTime"]).startswith(iso_local(now_ns)[:10]):
        metrics["todayPnL"] = 0.0
    return metrics


def _checked(rows: Any) -> list[dict[str, Any]]:
    """Return the rows of a trade log as they are; ValueError unless each can be counted."""
    if not (isinstance(rows, list) and all(_is_trade(row) for row in rows)):
        raise ValueError("it holds something else than a list of trades")
    return rows


def _is_trade(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("trade_id"), str)
        and isinstance(row.get("exit_time"), str)
        and isinstance(row.get("pnl"), int | float)
    )


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
    """Write a file anew: it is the old or the new one, never half, after a power cut too."""
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
