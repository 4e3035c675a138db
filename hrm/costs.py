"""Costs: what the next step of thinking will likely take, learned from what the last ones took."""

SMOOTHING = 0.125  # share of the newest cost in the running mean, as TCP smooths round-trip times
DEVIATIONS = 2.0  # mean + 2 mean absolute deviations is about the 95th percentile of a normal
LARGEST_JUMP = 4.0  # times the likely cost; what takes longer is a stall of the machine
NEWS_STEPS = 32  # what another size took counts unless it is so much older than what this one took


class CostEstimate:
    """Predict what the next step will take, from what the last ones took, on the safe side."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0
        self.is_new = True

    def observe(self, elapsed_ns: int) -> None:
        """Take note of one more step."""
        if self.is_new:
            self._mean, self._deviation, self.is_new = float(elapsed_ns), elapsed_ns / 2.0, False
            return
        error = elapsed_ns - self._mean
        self._mean += SMOOTHING * error
        self._deviation += SMOOTHING * (abs(error) - self._deviation)

    @property
    def likely_ns(self) -> float:
        """Return a cost that about 19 of 20 steps stay under; 0 before the first."""
        return self._mean + DEVIATIONS * self._deviation


class CostTable:
    """Predict what a step over some rows will take; sizes up to the same power of two are one.

    A size is taken to cost no more than a larger one, and in proportion no more than a smaller one:
    more rows share what is read once. So a size that is refused for what it once cost is expected
    again when smaller ones turn out to be cheap. What they took long before the size itself was
    last seen says nothing against that.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}  # by power of two
        self._steps = 0

    def observe(self, rows: int, elapsed_ns: int) -> None:
        """Take note of one more step; a stall counts as a step that took four times as long."""
        size = self._sizes.setdefault(_power_of_two(rows), _Size(rows))
        self._steps += 1
        size.last_step = self._steps
        if not size.cost.is_new and (likely_ns := size.likely_ns(rows)) > 0:
            elapsed_ns = min(elapsed_ns, round(LARGEST_JUMP * likely_ns))
        size.observe(rows, elapsed_ns)

    def likely_ns(self, rows: int) -> float:
        """Return a cost that about 19 of 20 steps stay under; 0 before the first of any size."""
        own = self._sizes.get(_power_of_two(rows))
        since = 0 if own is None else own.last_step - NEWS_STEPS
        return min(
            (size.likely_ns(rows) for size in self._sizes.values() if size.last_step > since),
            default=0.0,
        )


class _Size:
    """What steps of about one size took, and how many rows those had on average."""

    def __init__(self, rows: int) -> None:
        self.cost = CostEstimate()
        self.last_step = 0  # number of the newest one, of all sizes
        self._rows = float(rows)

    def observe(self, rows: int, elapsed_ns: int) -> None:
        self._rows += SMOOTHING * (rows - self._rows)
        self.cost.observe(elapsed_ns)

    def likely_ns(self, rows: int) -> float:
        return self.cost.likely_ns * max(1.0, rows / self._rows)


def _power_of_two(rows: int) -> int:
    """Return the smallest power of two that is not below `rows`."""
    return 1 << (rows - 1).bit_length()
