"""Profiling: how long the steps of thinking, and the layers of the model, took of late.

Off, an engine is not wrapped at all and times no layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hrm.engine import Batch, Engine, Floats, Reading, TimesLayers

RECENT = 1024  # samples kept of each step
PERCENTILES = {"p50_us": 0.50, "p99_us": 0.99}
NS_PER_US = 1000

Done = TypeVar("Done")
Summary = dict[str, dict[str, float]]


class Profile:
    """Keep the last times of each step; may be summed up from another thread meanwhile."""

    def __init__(self) -> None:
        self._recent: dict[str, list[int]] = {}
        self._counts: dict[str, int] = {}

    def add(self, step: str, elapsed_ns: int) -> None:
        """Take note of one more step."""
        count = self._counts.get(step, 0)
        recent = self._recent.setdefault(step, [])
        if len(recent) < RECENT:
            recent.append(elapsed_ns)
        else:
            recent[count % RECENT] = elapsed_ns
        self._counts[step] = count + 1

    def clear(self) -> None:
        """Forget everything, as after warming up."""
        self._recent.clear()
        self._counts.clear()

    def summary(self) -> Summary:
        """Return count, and percentiles in microseconds over the last thousand, of each step."""
        found: Summary = {}
        for step in tuple(self._recent):
            ordered = sorted(self._recent[step])
            found[step] = {"count": self._counts[step]} | {
                name: round(ordered[int(share * (len(ordered) - 1))] / NS_PER_US, 1)
                for name, share in PERCENTILES.items()
            }
        return found


class ProfiledEngine:
    """Pass every step on to an engine, and note how long it took."""

    def __init__(
        self, engine: Engine[Any, Any], profile: Profile, clock_ns: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._profile = profile
        self._clock_ns = clock_ns
        self._layers = engine if isinstance(engine, TimesLayers) else None
        if self._layers is not None:
            self._layers.time_layers()

    def encode(self, batch: Batch) -> Any:
        """Read a batch once; raise ValueError naming an input that is wrong."""
        return self._timed("encode", lambda: self._engine.encode(batch))

    def start(self, encoded: Any) -> Any:
        """Return the fixed state that thinking starts from."""
        return self._engine.start(encoded)

    def cycle(self, state: Any, encoded: Any) -> Any:
        """Return the state one cycle later; the one given stays readable."""
        return self._timed("cycle", lambda: self._engine.cycle(state, encoded))

    def residual(self, before: Any, after: Any) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        return self._timed("residual", lambda: self._engine.residual(before, after))

    def rows(self, state: Any, encoded: Any, keep: Sequence[int]) -> tuple[Any, Any]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        return self._timed("rows", lambda: self._engine.rows(state, encoded, keep))

    def read(self, state: Any) -> Reading:
        """Read the heads; valid after every cycle."""
        return self._timed("heads", lambda: self._engine.read(state))

    def note_layers(self) -> None:
        """Note how long each layer took in the thought that ends now, if the engine can say so."""
        if self._layers is not None:
            for layer, spent_ns in self._layers.layer_times().items():
                self._profile.add(layer, spent_ns)

    def _timed(self, step: str, work: Callable[[], Done]) -> Done:
        before_ns = self._clock_ns()
        done = work()
        self._profile.add(step, self._clock_ns() - before_ns)
        return done
