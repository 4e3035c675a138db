"""Expiry days by rule: when the derivatives of an underlying expire next.

For the model's features and for a check of what the broker's symbol master says; orders take their
expiry from there, never from a rule.
"""

from collections.abc import Callable, Iterator
from datetime import date, timedelta

from actors.session_table import WEEKDAYS, ExpiryRule

_ONE_DAY = timedelta(days=1)
_LONGEST_CLOSURE_DAYS = 14


def next_expiry(
    day: date, rules: tuple[ExpiryRule, ...], is_trading: Callable[[date], bool]
) -> date | None:
    """Return the first expiry on or after a day; None before the first rule.

    rules: oldest first. `is_trading` tells of a date whether it has a regular session; an expiry
    that falls on another one is on the last such date before it.
    """
    for nominal in _nominal_days(day, rules):
        moved = nominal
        while not is_trading(moved) and (nominal - moved).days < _LONGEST_CLOSURE_DAYS:
            moved -= _ONE_DAY
        if moved >= day:
            return moved
    return None


def _nominal_days(day: date, rules: tuple[ExpiryRule, ...]) -> Iterator[date]:
    """Yield expiry days by their weekday alone, ascending, from a day on."""
    if not rules or day < rules[0].effective_from:
        return
    nominal = day
    for _ in range(62):  # two months: the last weekday of the next one may have moved before `day`
        rule = [rule for rule in rules if rule.effective_from <= nominal][-1]
        if WEEKDAYS[nominal.weekday()] == rule.weekday and (
            rule.every == "week" or (nominal + timedelta(days=7)).month != nominal.month
        ):
            yield nominal
        nominal += _ONE_DAY
