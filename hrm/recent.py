"""Recent: the newest numbers, or rows, of a series, as an array that costs nothing to read."""

from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Number = TypeVar("Number", np.int64, np.float64, np.float32)


class Recent(Generic[Number]):
    """Keep the newest `length` elements of a series."""

    def __init__(self, length: int, kind: type[Number], *shape: int) -> None:
        """length: elements kept; kind: what their numbers are stored as; shape: of an element."""
        if length <= 0:
            raise ValueError(f"length must be positive, was {length}")
        self._length = length
        self._held: NDArray[Any] = np.empty((2 * length, *shape), kind)
        self._end = 0

    def append(self, element: ArrayLike) -> None:
        """Add the newest one; the oldest goes when there are more than are kept."""
        if self._end == len(self._held):
            kept = self._length - 1
            self._held[:kept] = self._held[self._end - kept :]
            self._end = kept
        self._held[self._end] = element
        self._end += 1

    @property
    def values(self) -> NDArray[Number]:
        """The elements kept [N, *shape], oldest first: a view that holds until next `append`."""
        return self._held[max(self._end - self._length, 0) : self._end]

    def copy(self) -> Self:
        """Return one that goes on from here by itself."""
        copied = object.__new__(type(self))
        copied._length, copied._held, copied._end = self._length, self._held.copy(), self._end
        return copied
