"""Continuity: which candles hold prices of continuous trading, as market_feed marks live bars.

A closing auction's prices are made otherwise, and no model reads them.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from actors.instruments import Instrument
from actors.session import SessionCalendar
from daemon.history import CandleTable


def auction_bars(
    table: CandleTable, calendar: SessionCalendar, instrument: Instrument | None
) -> NDArray[np.bool_]:
    """Tell which bars of a session are not wholly in continuous trading, [N].

    By the phases of the instrument's segment on the bar's own day. None of them is where no auction
    is known: instruments without a segment, bars of a day, days whose hours nobody knows.
    """
    found = np.zeros(len(table), dtype=np.bool_)
    segment = instrument.price_segment if instrument is not None else None
    if instrument is None or segment not in calendar.segments or table.timeframe == "D":
        return found
    market = instrument.session
    for place, open_ns in enumerate(table.open_ns.tolist()):
        if calendar.phase(market, open_ns) == "closed" or not calendar.is_covered(market, open_ns):
            continue
        close_ns = calendar.bar_close_ns(market, table.timeframe, open_ns)
        found[place] = not calendar.is_continuous(segment, open_ns, close_ns)
    return found


def without(table: CandleTable, left_out: NDArray[np.bool_]) -> CandleTable:
    """Return the table less the bars told; digest and quality stay the file's."""
    names = ("open_ns", "open", "high", "low", "close", "volume")
    return replace(table, **{name: getattr(table, name)[~left_out] for name in names})
