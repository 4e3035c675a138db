"""Day profile: how much the price usually moves at each time of day, learned bar by bar.

Markets are wild after the opening and quiet at noon, so that a movement says little until it is
compared with what is usual at its hour. Times of day are slots of the UTC day, one for each bar
that opens in it; hours that change by circular are learned like everything else.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Final

DAY_NS: Final = 86_400_000_000_000
_SHARE: Final = 1.0 - 0.5 ** (1 / 20)  # a slot forgets half in 20 sessions
_LEAST_SEEN: Final = 2  # days; an evening session once a year makes no part of the day
_FORGOTTEN_DAYS: Final = 14  # longer than any closure: the slot is traded no more


@dataclass(slots=True)
class _Slot:
    move: float  # usual log variance of the bar
    window: float  # usual log mean variance of the window that ends with it
    seen: int
    last_day: int


@dataclass(slots=True)
class DayProfile:
    """Usual movement by time of day. All movements are logarithms of variances."""

    _slots: dict[int, _Slot] = field(default_factory=dict)
    _order: list[int] = field(default_factory=list)  # slots of the usual day, ascending
    _day: int = -1

    def surprise(self, open_ns: int, move: float) -> float:
        """Return how far a movement is above the usual one of its time; 0 if none is known."""
        slot = self._slots.get(open_ns % DAY_NS)
        return move - slot.move if slot is not None else 0.0

    def learn(self, open_ns: int, move: float, window: float) -> None:
        """Take the movement of a bar and of the window that ends with it.

        The first values of a slot count alike; later each new one moves it by a fixed share.
        """
        day, at = divmod(open_ns, DAY_NS)
        if day != self._day:
            self._day = day
            self._forget(day)
        slot = self._slots.setdefault(at, _Slot(0.0, 0.0, 0, day))
        slot.seen += 1
        slot.last_day = day
        share = max(1.0 / slot.seen, _SHARE)
        slot.move += share * (move - slot.move)
        slot.window += share * (window - slot.window)
        if slot.seen == _LEAST_SEEN:
            insort(self._order, at)

    def usual_window(self, open_ns: int) -> float:
        """Return the usual movement of the window that ends with this bar, which was learned."""
        return self._slots[open_ns % DAY_NS].window

    def ahead(self, open_ns: int, bars: int) -> tuple[float, float] | None:
        """Look at the window that ends so many bars after this one; None before two days.

        Return its usual movement, and the share of its bars that lie in the next day, in [0, 1].
        """
        if not self._order:
            return None
        here = bisect_right(self._order, open_ns % DAY_NS)
        left = len(self._order) - here
        end = self._order[(here + bars - 1) % len(self._order)]
        return self._slots[end].window, 1.0 - min(left / bars, 1.0)

    def _forget(self, day: int) -> None:
        gone = [at for at, slot in self._slots.items() if day - slot.last_day > _FORGOTTEN_DAYS]
        for at in gone:
            del self._slots[at]
        if gone:
            self._order = [at for at in self._order if at in self._slots]
