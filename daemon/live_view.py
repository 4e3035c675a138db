"""The live view of a session in the terminal: what came, what was decided, what it made."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from daemon.plan import SessionPlan
from daemon.statistics import SessionStatistics


class LiveView:
    """Draw a session's statistics four times a second, as a context; nothing without a terminal."""

    def __init__(
        self, plan: SessionPlan, statistics: SessionStatistics, market_now_ns: Callable[[], int]
    ) -> None:
        self._plan = plan
        self._statistics = statistics
        self._market_now_ns = market_now_ns
        console = Console(stderr=True)
        self._live = (
            Live(get_renderable=self.render, console=console, refresh_per_second=4)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live:
            self._live.stop()

    def render(self) -> RenderableType:
        """Return one picture of the session as it stands."""
        return Panel(
            Group(self._flow(), self._positions(), self._last_decision()),
            title=f"{self._plan.session}   {self._market_time()}",
            subtitle="Ctrl-C stops in order",
        )

    def _market_time(self) -> str:
        now_ns = self._market_now_ns()
        if not now_ns:
            return "starting"
        return f"{datetime.fromtimestamp(now_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC market time"

    def _flow(self) -> Table:
        summary = self._statistics.summary()
        table = Table(box=None, pad_edge=False)
        for name in ("ticks", "bars", "decisions", "orders", "fills", "alerts"):
            table.add_column(name, justify="right")
        table.add_column("tick to decision p50 / p99", justify="right")
        table.add_column("depth", justify="right")
        latency = summary["tick_to_decision_us"]
        table.add_row(
            *(str(summary[n]) for n in ("ticks", "bars", "decisions", "orders", "fills", "alerts")),
            f"{latency['p50'] / 1000:.1f} / {latency['p99'] / 1000:.1f} ms",
            f"{summary['reasoning_depth']['mean']:.1f}",
        )
        return table

    def _positions(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in (
            "instrument",
            "position",
            "entry",
            "stop",
            "target",
            "realised",
            "trips",
            "won",
        ):
            table.add_column(name, justify="left" if name == "instrument" else "right")
        for position in self._statistics.positions.values():
            table.add_row(
                position.instrument,
                f"{position.net_quantity:+d}" if position.net_quantity else "flat",
                *(
                    "" if price is None or not position.net_quantity else str(price)
                    for price in (
                        position.average_price,
                        position.trailing_stop_price or position.stop_price,
                        position.target_price,
                    )
                ),
                f"{position.realised_pnl:+.2f}",
                str(position.round_trips),
                str(position.winning_round_trips),
            )
        return table

    def _last_decision(self) -> Text:
        decision = self._statistics.last_decision
        if decision is None:
            return Text()
        return Text(
            f"last decision: {decision.instrument} {decision.action} "
            f"({decision.confidence:.2f}), {decision.reason}"
        )
