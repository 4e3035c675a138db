"""Positions: what was held for a view of one instrument, itself and options on it, as one."""

from collections.abc import Iterable
from decimal import Decimal

import msgspec

from actors.messages import Position


def summed(positions: Iterable[Position], subject: str) -> Position | None:
    """Return the open position on a subject, or else the last, with the results of all of them.

    positions: the last of each instrument. None: nothing was ever held.
    """
    on_it = [position for position in positions if position.subject == subject]
    if not on_it:
        return None
    shown = max(on_it, key=lambda position: (position.net_quantity != 0, position.updated_ns))
    return msgspec.structs.replace(
        shown,
        realised_pnl=sum((position.realised_pnl for position in on_it), Decimal(0)),
        charges=sum((position.charges for position in on_it), Decimal(0)),
        capital_used=sum((position.capital_used for position in on_it), Decimal(0)),
        round_trips=sum(position.round_trips for position in on_it),
        winning_round_trips=sum(position.winning_round_trips for position in on_it),
    )
