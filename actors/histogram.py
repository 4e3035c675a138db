"""A histogram of fixed size for positive numbers: percentiles without keeping the numbers."""

import math

_BUCKETS_PER_DOUBLING = 16  # a bucket is 2**(1/16) wide: percentiles are within 4.5 %
_DOUBLINGS = 40
_BUCKETS = _BUCKETS_PER_DOUBLING * _DOUBLINGS


class Histogram:
    """Count numbers from 1 to 2**40 in buckets of equal ratio; smaller ones count as 1."""

    __slots__ = ("_counts", "_largest", "_total", "count")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self._total = 0.0
        self._largest = 0.0

    def record(self, value: float) -> None:
        """Count one number."""
        bucket = int(math.log2(value) * _BUCKETS_PER_DOUBLING) if value > 1 else 0
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self.count += 1
        self._total += value
        self._largest = max(self._largest, value)

    def percentile(self, share: float) -> float:
        """Return the number that `share` (0 to 1) of those counted do not exceed; 0 when empty.

        It is the upper edge of its bucket, so at most 4.5 % too high, and never above the largest.
        """
        if self.count == 0:
            return 0.0
        wanted = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                upper: float = 2 ** ((bucket + 1) / _BUCKETS_PER_DOUBLING)
                return min(upper, self._largest)
        return self._largest

    @property
    def mean(self) -> float:
        """Mean of the numbers counted; 0 when empty."""
        return self._total / self.count if self.count else 0.0

    @property
    def largest(self) -> float:
        """The largest number counted; 0 when empty."""
        return self._largest
