"""Schemas of checked candles and of the contract's frame: the last word on any table.

`history.py` says in the words of the file what was wrong with its rows; these say what must be true
of a table that is handed on, whoever made it.
"""

import numpy as np
import pandas as pd
import pandera.pandas as pa

from daemon.errors import DataError
from daemon.feature_frame import FRAME_COLUMNS, INDEX_NAME
from daemon.history import CandleTable

_PRICES = ("open", "high", "low", "close")
_SHARES = ("rsi_14", "rsi_21", "stoch_k", "stoch_d", "adx", "di_plus", "di_minus")
_SIGNS = ("trend_direction", "sma_5_20_cross", "sma_10_50_cross")
_ROUNDING = 0.01  # a share of 100 may be rounded up to it, not beyond

CANDLES = pa.DataFrameSchema(
    {
        "open_ns": pa.Column("int64", unique=True),
        **{name: pa.Column("float64", pa.Check.gt(0)) for name in _PRICES},
        "volume": pa.Column("int64", pa.Check.ge(0)),
    },
    checks=[
        pa.Check(lambda t: t["open_ns"].is_monotonic_increasing, name="times ascend"),
        pa.Check(lambda t: t["high"] >= t[list(_PRICES)].max(axis=1), name="high is highest"),
        pa.Check(lambda t: t["low"] <= t[list(_PRICES)].min(axis=1), name="low is lowest"),
    ],
    strict=True,
)
"""What every candle table fulfils, one row a bar."""

FRAME = pa.DataFrameSchema(
    {
        "datetime_epoch": pa.Column("int64", unique=True),
        **{name: pa.Column("float64", pa.Check.gt(0)) for name in _PRICES},
        **{
            name: pa.Column("float64", pa.Check.in_range(-_ROUNDING, 100 + _ROUNDING))
            for name in _SHARES
        },
        **{name: pa.Column("float64", pa.Check.isin([-1.0, 1.0])) for name in _SIGNS},
        **{
            name: pa.Column("float64")
            for name in FRAME_COLUMNS
            if name not in {"datetime_epoch", *_PRICES, *_SHARES, *_SIGNS}
        },
    },
    index=pa.Index("datetime64[ns]", name=INDEX_NAME, coerce=True),
    strict=False,  # older files carry more columns
)
"""What every file of the contract's features fulfils; other columns are let through."""


def candle_frame(table: CandleTable) -> pd.DataFrame:
    """Return a table's bars as a frame that fulfils CANDLES, or raise DataError."""
    frame = pd.DataFrame(
        {
            "open_ns": np.array(table.open_ns),
            **{name: np.array(getattr(table, name)) for name in (*_PRICES, "volume")},
        }
    )
    return validated(frame, CANDLES, table.symbol)


def validated(frame: pd.DataFrame, schema: pa.DataFrameSchema, source: str) -> pd.DataFrame:
    """Return the frame as the schema has it; DataError names the first values that do not fit."""
    try:
        return schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        shown = [
            f"{case['column']}: {case['check']}, was {case['failure_case']} in row {case['index']}"
            for _, case in cases.head(3).iterrows()
        ]
        raise DataError(
            f"{source}: {len(cases)} values break the schema: {'; '.join(shown)}; make the file"
            " again from its source"
        ) from error
