"""python -m backend.backtest_worker: one back-test in a process of its own, told line by line.

Reads one JSON object from stdin, writes JSON lines to stdout: `loaded`, a `bar` for each, and at
the end `result` or `error`. It runs what `hrm-trader backtest` runs, with the same seed.
"""

import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from actors.messages import ACTIONS
from backend.candles import without_folder
from daemon.backtest import BacktestService, BarProgress, prepare
from daemon.errors import TraderError
from daemon.history import load_candles
from daemon.logs import configure_logs
from daemon.settings import load_instruments, load_sessions

SEED = 1  # that of `hrm-trader backtest`
_NS = 1_000_000_000
_HOLD = ACTIONS.index("HOLD")


def main() -> None:
    """Run the back-test that stdin describes; the exit status is 0 also where it failed."""
    configure_logs("ERROR")
    request = json.loads(sys.stdin.readline())
    try:
        _run(request)
    except TraderError as error:
        _tell({"kind": "error", "text": without_folder(str(error), Path(request["path"]))})


def days_of(path: Path, symbol: str, days: int, config: Path | None) -> tuple[date, date]:
    """Return the first and the last of the file's newest `days` days, in the market's zone."""
    catalogue = load_instruments(config, demo=True).catalogue
    table = load_candles(path)
    exchange = catalogue[symbol].session
    zone = ZoneInfo(load_sessions(config).table.markets[exchange].timezone)
    newest = datetime.fromtimestamp(int(table.open_ns[-1]) // _NS, UTC).astimezone(zone)
    last = newest.date()
    return last - timedelta(days=max(days, 1) - 1), last


def _run(request: dict[str, Any]) -> None:
    path = Path(request["path"])
    config = Path(request["config"]) if request["config"] else None
    first, last = days_of(path, request["instrument"], request["days"], config)
    where = prepare(
        [path],
        [request["instrument"]],
        config=config,
        timeframe=request["timeframe"],
        first=first,
        last=last,
        capital=request["capital"],
    )
    _tell({"kind": "loaded", "total": sum(len(market.table) for market in where.markets)})
    result = BacktestService(where, seed=SEED).run_alone(_tell_bar)
    _tell({"kind": "result", "results": result.contract()})


def _tell_bar(progress: BarProgress) -> None:
    bar = progress.bar
    fill = progress.trades[-1] if progress.trades else None
    open_s = bar.open_ns // _NS
    _tell(
        {
            "kind": "bar",
            "number": progress.number,
            "total": max(progress.total, progress.number),
            "candle": {
                "time": open_s,
                "open": float(bar.open),
                "high": float(bar.high),
                "low": float(bar.low),
                "close": float(bar.close),
            },
            "action": {
                "type": ACTIONS.index(fill.action) if fill else _HOLD,
                "price": fill.price if fill else float(bar.close),
                "timestamp": open_s,
            },
            "portfolio_value": progress.portfolio_value,
        }
    )


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
