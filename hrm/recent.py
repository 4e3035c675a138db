"""Recent: the newest numbers of a series, as an array that costs nothing to read."""

from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.int64, np.float64)


class Recent(Generic[Number]):
    """Keep the newest `length` numbers of a series."""

    def __init__(self, length: int, kind: type[Number]) -> None:
        """length: numbers kept; kind: what they are stored as."""
        if length <= 0:
            raise ValueError(f"length must be positive, was {length}")
        self._length = length
        self._held: NDArray[Any] = np.empty(2 * length, kind)
        self._end = 0

    def append(self, value: float) -> None:
        """Add the newest number; the oldest goes when there are more than are kept."""
        if self._end == len(self._held):
            kept = self._length - 1
            self._held[:kept] = self._held[self._end - kept :]
            self._end = kept
        self._held[self._end] = value
        self._end += 1

    @property
    def values(self) -> NDArray[Number]:
        """The numbers kept [N], oldest first: a view that holds until the next `append`."""
        return self._held[max(self._end - self._length, 0) : self._end]
