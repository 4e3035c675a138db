"""The actors in flow order, what each is built from, and what a crash of each one means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import ValidationError

from actors.base import Actor
from actors.complexity import MarketComplexityActor
from actors.desk import TradingDesk
from actors.drill import DrillTrader
from actors.execution import ExecutionActor
from actors.instruments import InstrumentCatalogue
from actors.market_feed import MarketFeedActor
from actors.messages import Message, NewsUpdate, TradingMode
from actors.monitoring import MonitoringActor
from actors.reasoning import ReasoningActor, Recorded, Thinker
from actors.risk import RiskActor
from actors.session import SessionCalendar, SessionTable
from daemon import tick_source
from daemon.errors import ReplayError
from daemon.plan import SessionPlan
from daemon.settings import Settings

Consequence = Literal["halt", "restart"]


@dataclass(frozen=True)
class Wire:
    """An actor class and what follows when it fails: `halt` stops trading, both restart it."""

    actor: type[Actor[Any, Any]]
    on_crash: Consequence


ACTORS: tuple[Wire, ...] = (
    Wire(MarketFeedActor, "restart"),
    Wire(MarketComplexityActor, "restart"),
    Wire(ReasoningActor, "restart"),
    Wire(RiskActor, "halt"),
    Wire(ExecutionActor, "halt"),
    Wire(MonitoringActor, "restart"),
)
NAMES: tuple[str, ...] = tuple(wire.actor.name for wire in ACTORS)

INPUT_STREAMS: Mapping[str, tuple[str, ...]] = {
    wire.actor.name: tuple(
        dict.fromkeys(kind.stream for kind in wire.actor.inputs() if not kind.shared)
    )
    for wire in ACTORS
} | {"order_gateway": ("order",)}
"""What each group must have handled in the end; shared streams carry no orders and no prices."""

EDGES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tick_source": ((), tick_source.STREAMS),
    "news_feed": ((), (NewsUpdate.stream,)),
    "order_gateway": (("order",), ("report", "heartbeat")),
    "operator": ((), ("control",)),
    "supervisor": ((), ("alert", "control")),
    "backend": (("*",), ("request", "control")),
    "journal": (("*",), ()),
}
"""What stands at the edges: name -> (streams read, streams written)."""


@dataclass(frozen=True)
class Workshop:
    """Build the actors of one session, all from its plan."""

    settings: Settings
    catalogue: InstrumentCatalogue
    calendar: SessionCalendar
    timeframes: Mapping[str, str]  # instrument -> timeframe
    no_model_reason: str
    drill_seed: int | None  # None: the model decides
    mode: TradingMode

    @classmethod
    def of(cls, plan: SessionPlan) -> Self:
        """Read a plan; raises ReplayError for one with settings that this version does not know."""
        try:
            settings = Settings.model_validate(plan.settings)
            calendar = SessionCalendar(SessionTable.model_validate(plan.calendar))
        except ValidationError as error:
            raise ReplayError(
                f"the plan of {plan.session} does not fit this version, use the one that made it "
                f"({plan.versions}): {error}"
            ) from error
        return cls(
            settings=settings,
            catalogue=InstrumentCatalogue(plan.instruments),
            calendar=calendar,
            timeframes={market.instrument: market.timeframe for market in plan.markets},
            no_model_reason=plan.no_model_reason,
            drill_seed=plan.seed if plan.trader == "drill" else None,
            mode="REAL" if plan.mode == "live" else "PAPER",
        )

    def build(
        self,
        name: str,
        thinker: Thinker | None = None,
        recorded: Callable[[str], Recorded | None] | None = None,
    ) -> Actor[Any, Any]:
        """Return a fresh actor. `thinker` and `recorded` concern reasoning alone.

        Without a thinker reasoning holds and gives the plan's reason why there is no valid model.
        """
        settings = self.settings
        deadline_ms = settings.hierarchical_reasoning_model.performance.max_inference_time_ms
        match name:
            case "market_feed":
                return MarketFeedActor(
                    settings.feed, self.catalogue, self.calendar, self.timeframes
                )
            case "complexity":
                return MarketComplexityActor(settings.complexity)
            case "reasoning" if self.drill_seed is not None:
                return DrillTrader(self.drill_seed)
            case "reasoning":
                return ReasoningActor(
                    settings.reasoning,
                    thinker,
                    self.catalogue,
                    settings.risk_limits.initial_capital,
                    no_thinker_because=self.no_model_reason,
                    deadline_for=lambda _: deadline_ms,
                    recorded=recorded,
                )
            case "risk":
                return RiskActor(
                    settings.risk_limits,
                    settings.execution,
                    self.catalogue,
                    self.calendar,
                    TradingDesk(self.mode, self.timeframes),
                )
            case "execution":
                return ExecutionActor(settings.execution, self.catalogue, self.calendar)
            case "monitoring":
                return MonitoringActor(settings.monitoring, NAMES)
            case _:
                raise ValueError(f"no actor is called {name!r}: choose from {', '.join(NAMES)}")


def on_crash(name: str) -> Consequence:
    """Return what follows when a part fails; edges restart."""
    return next((wire.on_crash for wire in ACTORS if wire.actor.name == name), "restart")


def graph() -> list[dict[str, Any]]:
    """Return the wiring, read off the class lines: who takes what from whom."""

    def names(types: tuple[type[Message], ...]) -> list[str]:
        return [kind.__name__ for kind in types]

    return [
        {
            "actor": wire.actor.name,
            "inputs": names(wire.actor.inputs()),
            "outputs": names(wire.actor.outputs()),
            "heavy": wire.actor.heavy,
            "on_crash": wire.on_crash,
        }
        for wire in ACTORS
    ] + [
        {"edge": name, "reads": list(reads), "writes": list(writes)}
        for name, (reads, writes) in EDGES.items()
    ]
