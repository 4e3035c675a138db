"""Which real inputs does the gate compare engines on? Make them from the candles of the demo.

python -m benchmarks.gate_inputs
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from daemon.demo_data import demo_candles
from daemon.history import load_candles
from daemon.lookahead import training_candles
from hrm.features import WARMUP_BARS
from hrm.gate_inputs import BARS, DECISIONS, PATH, STRETCHES, STRIDE, WINDOW
from hrm.training.market_table import (
    Account,
    LabelSettings,
    MarketTable,
    Vocabulary,
    market_table,
)

HELD_BARS, SIZE = 5, 0.5  # of the positions that two of three decisions stand in


def demo_table() -> tuple[MarketTable, int]:
    """Return the demo candles as a table, and how many there are; a mirrored series follows."""
    candles = training_candles(load_candles(demo_candles().path))
    table = market_table(
        [candles], window=WINDOW, labels=LabelSettings(), vocabulary=Vocabulary.of([candles])
    )
    return table, len(candles)


def account_at(table: MarketTable, row: int, number: int) -> Account:
    """Return an account that is flat, long or short, in turn."""
    sign = (0, 1, -1)[number % 3]
    if not sign:
        return Account()
    return table.aged(table.opened(row - HELD_BARS, sign, SIZE, 1.0), row)


def gate_inputs() -> dict[str, NDArray[Any]]:
    """Return what hrm.gate_inputs reads, from stretches spread over the candles."""
    table, count = demo_table()
    first = table.first_row[0]
    starts = np.linspace(first + WARMUP_BARS, first + count - BARS, STRETCHES).astype(np.int64)
    ends = WINDOW - 1 + STRIDE * np.arange(DECISIONS)
    rows = (starts[:, None] + ends).reshape(-1)
    seen = table.observe(rows, [account_at(table, int(row), n) for n, row in enumerate(rows)])
    return {
        "bars": table.features[starts[:, None] + np.arange(BARS)].astype(np.float16),
        "account": seen.account,
        "context": seen.context,
    }


def main() -> None:
    """Write the file."""
    save_file(gate_inputs(), PATH)


if __name__ == "__main__":
    main()
