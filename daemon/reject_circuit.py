"""Reject circuit: after three identical rejects, stop asking the broker for the same thing.

Entries only; an exit is always worth another try, though its rejects count. The class of a reject
says how far it reaches and how long the circuit stays open, in market time; then one order may try
again.
"""

import re
from collections import Counter
from typing import Final

from actors.messages import RejectKind

IDENTICAL_REJECTS: Final = 3
_SECOND_NS: Final = 1_000_000_000
_OPEN_S: Final[dict[RejectKind, int]] = {
    "permanent": 900,  # a wrong lot or no margin does not mend itself
    "retryable": 60,
    "auth": 300,  # a person has to log in
    "rate": 60,  # the broker counts by the minute
}
_EVERYWHERE: Final = frozenset({"auth", "rate"})
_ANY: Final = "*"

_AUTH_CODES: Final = frozenset({-8, -15, -16, -17, 401})
_RATE_CODES: Final = frozenset({-429, 429})
_RETRYABLE_WORDS: Final = ("market is closed", "has not reached the exchange")


def reject_kind(code: int, text: str) -> RejectKind:
    """Return the class of a reject from the code and text of the broker's reply."""
    if code in _AUTH_CODES:
        return "auth"
    if code in _RATE_CODES:
        return "rate"
    return "retryable" if any(word in text for word in _RETRYABLE_WORDS) else "permanent"


class RejectCircuit:
    """Count rejects by scope and wording; open on the third identical one."""

    def __init__(self) -> None:
        self.rejects: Counter[RejectKind] = Counter()
        self.openings = 0
        self._counts: dict[str, tuple[str, int]] = {}  # scope -> wording, how often in a row
        self._open_until_ns: dict[str, tuple[int, str]] = {}

    def rejected(self, subject: str, kind: RejectKind, reason: str, now_ns: int) -> str | None:
        """Count one reject; return a sentence when it opens the circuit.

        subject: what was ordered, or what that is a view of. Rejects of exits while it is open keep
        it open, and say nothing.
        """
        self.rejects[kind] += 1
        scope = _ANY if kind in _EVERYWHERE else subject
        wording = f"{kind}: {_without_numbers(reason)}"
        last, count = self._counts.get(scope, ("", 0))
        count = count + 1 if last == wording else 1
        self._counts[scope] = wording, count
        if count < IDENTICAL_REJECTS:
            return None
        was_open_until_ns, _ = self._open_until_ns.get(scope, (0, ""))
        self._open_until_ns[scope] = now_ns + _OPEN_S[kind] * _SECOND_NS, reason
        if now_ns < was_open_until_ns:
            return None
        self.openings += 1
        where = "all instruments" if scope == _ANY else subject
        return (
            f"{count} identical rejects ({kind}), no entries in {where} for {_OPEN_S[kind]} s: "
            f"{reason}"
        )

    def confirmed(self, subject: str) -> None:
        """Begin to count anew: an order was not rejected."""
        for scope in (subject, _ANY):
            self._counts.pop(scope, None)

    def refusal(self, subject: str, now_ns: int) -> str | None:
        """Return why an entry must not be tried now, or None."""
        for scope in (subject, _ANY):
            until_ns, reason = self._open_until_ns.get(scope, (0, ""))
            if now_ns < until_ns:
                left_s = -(-(until_ns - now_ns) // _SECOND_NS)
                return f"circuit open for {left_s} s after identical rejects: {reason}"
        return None


def _without_numbers(text: str) -> str:
    """Margin and prices differ from reject to reject; the words do not."""
    return re.sub(r"\d[\d.,]*", "#", text)
