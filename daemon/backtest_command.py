"""`hrm-trader backtest`: history through the whole chain, progress on stderr, results on stdout."""

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.backtest import BacktestService, BarProgress, prepare
from daemon.backtest_result import BacktestResult
from daemon.logs import configure_logs

_REPORTS = 20  # lines of progress


def backtest(
    data: Annotated[
        list[Path], typer.Option("--data", help="Candles, CSV or Parquet; may be repeated.")
    ],
    instrument: Annotated[
        list[str] | None,
        typer.Option("--instrument", help="Instrument of each file; default: by its name."),
    ] = None,
    timeframe: Annotated[
        str | None,
        typer.Option("--timeframe", help="Minutes of the bars; default: those of the candles."),
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option("--start", formats=["%Y-%m-%d"], help="First day of the candles."),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option("--end", formats=["%Y-%m-%d"], help="Last day, included.")
    ] = None,
    capital: Annotated[
        float | None, typer.Option("--capital", help="Instead of environment.initial_capital.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Draws the order of ticks within candles.")
    ] = 1,
    config: Annotated[
        Path | None, typer.Option("--config", help="Folder with settings.yaml.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Run candles through the chain of paper trading, as fast as it goes, and report."""
    configure_logs("ERROR")
    where = prepare(
        data,
        instrument or [],
        config=config,
        timeframe=timeframe,
        first=start.date() if start else None,
        last=end.date() if end else None,
        capital=capital,
    )
    began_s = time.monotonic()
    result = BacktestService(where, seed=seed).run_alone(_show)
    elapsed_s = max(time.monotonic() - began_s, 1e-9)
    print(
        f"{result.bars} bars in {elapsed_s:.1f} s, {result.bars / elapsed_s:.0f} a second",
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps(result.contract()))
        return
    for line in _lines(result):
        print(line)


def _show(progress: BarProgress) -> None:
    step = max(progress.total // _REPORTS, 1)
    if progress.number % step == 0 or progress.number == progress.total:
        share = min(progress.number / max(progress.total, 1), 1.0)
        print(
            f"{share:4.0%}  bar {progress.number} of {progress.total}, "
            f"value {progress.portfolio_value:.2f}",
            file=sys.stderr,
        )


def _lines(result: BacktestResult) -> list[str]:
    answer: dict[str, Any] = result.contract()
    left_out = ("trades", "portfolio_values", "hrm_metrics", "complexity_forecast")
    rows = {key: value for key, value in answer.items() if key not in left_out}
    rows |= answer["hrm_metrics"] | {"fills": len(result.trades)}
    return [f"{key}: {value}" for key, value in rows.items()]
