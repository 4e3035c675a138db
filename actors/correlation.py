"""Correlation stress: how far instruments have stopped to move together as they usually do."""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hrm.recent import Recent

_USUAL_WINDOWS: Final = 4  # the usual correlation is taken over this many windows before the last
_LONGEST_SILENCE_BARS: Final = 3  # one without a bar for longer says nothing about now
_LEAST_USUAL_CORRELATION: Final = 0.1  # below it there is nothing usual that could break down

Floats = NDArray[np.float64]


class CorrelationStress:
    """Follow the log returns of all instruments of one timeframe.

    Only bars before the one asked about count, so that it does not matter which of several
    instruments closes its bar first; what the others look like before a close is computed once.
    """

    def __init__(self, window: int) -> None:
        """window: returns that the correlation of now is taken over."""
        self._window = window
        self._compared = (1 + _USUAL_WINDOWS) * window
        self._tracks: dict[str, _Track] = {}
        self._before: _Market | None = None

    def add(self, instrument: str, close_ns: int, value: float) -> None:
        """Take in the log return of a bar, later than those of this instrument before."""
        if instrument not in self._tracks:
            # One more than is compared: those before the newest reach back as far as those of an
            # instrument whose bar of the same close is still to come.
            self._tracks[instrument] = _Track.of(self._compared + 1)
        track = self._tracks[instrument]
        track.times.append(close_ns)
        track.values.append(value)
        if self._before is not None and close_ns < self._before.close_ns:
            self._before = None

    def before(self, instrument: str, close_ns: int) -> float | None:
        """Say how far the correlations of an instrument have gone, before a bar closes at close_ns.

        0 where all are as usual, 1 where nothing is left of them. A pair weighs as much as its
        usual correlation; one whose other instrument fell silent is left out. None: no pair has a
        usual correlation.
        """
        if self._before is None or self._before.close_ns != close_ns:
            self._before = self._market(close_ns)
        group, row = self._before.places.get(instrument, (None, 0))
        if group is None or group.compared is None:
            return None
        pairs: list[tuple[float, float]] = []
        for usual, now in self._correlations(group, row, self._before.groups):
            # Not a number where one of the two never moved: no comparison holds then.
            pairs += [
                (then, since)
                for then, since in zip(usual.tolist(), now.tolist(), strict=True)
                if abs(then) >= _LEAST_USUAL_CORRELATION and not math.isnan(since)
            ]
        # Exact sums: the order of the pairs does not matter.
        lost = math.fsum(
            max(abs(then) - math.copysign(1.0, then) * now, 0.0) for then, now in pairs
        )
        usual_total = math.fsum(abs(then) for then, _ in pairs)
        return min(lost / usual_total, 1.0) if usual_total else None

    def _market(self, close_ns: int) -> "_Market":
        alike: dict[bytes, dict[str, Floats]] = {}  # by the times of the returns
        for instrument, track in self._tracks.items():
            all_times = track.times.values
            end = int(np.searchsorted(all_times, close_ns))
            begin = max(end - self._compared, 0)
            times = all_times[begin:end].tobytes()
            alike.setdefault(times, {})[instrument] = track.values.values[begin:end]
        market = _Market(close_ns, [], {})
        for times, values in alike.items():
            returns = np.stack(list(values.values()))
            is_long = returns.shape[1] >= 2 * self._window
            compared = self._compare(returns) if is_long else None
            group = _Group(np.frombuffer(times, np.int64), returns, compared)
            market.groups.append(group)
            market.places.update((name, (group, row)) for row, name in enumerate(values))
        return market

    def _compare(self, returns: Floats) -> "_Compared":
        """Prepare returns [P, N] to be correlated, the usual ones apart from those of now."""
        return _Compared(
            _Centred.of(returns[:, : -self._window]), _Centred.of(returns[:, -self._window :])
        )

    def _correlations(
        self, own: "_Group", row: int, groups: list["_Group"]
    ) -> Iterator[tuple[Floats, Floats]]:
        """Yield usual correlations [P] and those of now [P] with P others, group by group.

        Markets close their bars together: as a rule one group holds all.
        """
        newest_allowed = own.times[-_LONGEST_SILENCE_BARS:][0]
        for group in groups:
            if group is own:
                if group.compared is not None:
                    usual, now = group.compared
                    yield (
                        np.delete(usual.with_row(usual, row), row),
                        np.delete(now.with_row(now, row), row),
                    )
                continue
            times, ours, theirs = np.intersect1d(
                own.times, group.times, assume_unique=True, return_indices=True
            )
            if len(times) < 2 * self._window or times[-1] < newest_allowed:
                continue
            ours_there = self._compare(own.returns[row : row + 1, ours])
            theirs_there = self._compare(group.returns[:, theirs])
            yield (
                theirs_there.usual.with_row(ours_there.usual, 0),
                theirs_there.now.with_row(ours_there.now, 0),
            )


class _Track(NamedTuple):
    """The log returns of one instrument and when their bars closed, oldest first."""

    times: Recent[np.int64]
    values: Recent[np.float64]

    @classmethod
    def of(cls, length: int) -> Self:
        return cls(Recent(length, np.int64), Recent(length, np.float64))


class _Centred(NamedTuple):
    """Deviations from the mean [P, N], their squares' sums [P], and which ones move at all [P]."""

    deviations: Floats
    squares: Floats
    moves: NDArray[np.bool_]

    @classmethod
    def of(cls, returns: Floats) -> Self:
        deviations = returns - returns.mean(axis=1, keepdims=True)
        return cls(deviations, np.square(deviations).sum(axis=1), np.ptp(returns, axis=1) > 0)

    def with_row(self, other: "_Centred", row: int) -> Floats:
        """Correlate one row of another with each of ours; not a number where one never moved."""
        moves = self.moves & other.moves[row]
        scale = np.where(moves, np.sqrt(self.squares * other.squares[row]), np.nan)
        # A sum, not a dot product: what those call rounds otherwise on another processor.
        found: Floats = (self.deviations * other.deviations[row]).sum(axis=1) / scale
        return found


class _Compared(NamedTuple):
    """The returns that are usual, and those of now."""

    usual: _Centred
    now: _Centred


class _Group(NamedTuple):
    """Instruments whose bars closed at the same times [N]; their returns [P, N].

    compared: the same, prepared; None where there are fewer than two windows of them.
    """

    times: NDArray[np.int64]
    returns: Floats
    compared: _Compared | None


class _Market(NamedTuple):
    """What all instruments look like before a close; places: group and row of each."""

    close_ns: int
    groups: list[_Group]
    places: dict[str, tuple[_Group, int]]
