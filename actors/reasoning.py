"""Reasoning: from the market around a closed bar to what the policy wants to do.

The one module that sees both messages and arrays. How to think is hrm's, whether a decision becomes
an order is risk's.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.base import Actor, Arrival
from actors.deciding import (
    ThinkingFailed,
    check,
    decision,
    decision_id,
    hold,
    steering_complexity,
    too_late,
    trained_complexity,
)
from actors.epochs import context_within
from actors.instruments import InstrumentCatalogue
from actors.messages import Bar, Decision, MarketContext, PartialBar, PolicySwitch, Position
from actors.policies import ReasoningSettings
from actors.session import timeframe_minutes
from hrm.config import HRMConfig
from hrm.features import (
    WARMUP_BARS,
    WINDOW_BARS,
    FeatureWindow,
    account_features,
    context_features,
    valid_actions,
)
from hrm.thought import (
    Answer,
    DeadlineBudget,
    NoThought,
    Observation,
    Question,
    RecordedBudget,
)

Input = MarketContext | PartialBar | Position | PolicySwitch

THINKING_SHARE = 0.9
"""Share of the deadline given to the thinker, so that its last step may take a little longer than
expected without making the answer late."""

RESERVE_SHARE = 0.3
"""Share of the deadline that a thought leaves unused while other instruments' contexts of the same
bar close are still to come: one that comes while it thinks has at least as much left."""

_NS_PER_MINUTE = 60_000_000_000
_US_PER_MS = 1000


class Thinker(Protocol):
    """What turns an observation into a thought: hrm.agent.HRMAgent, or a process that runs one."""

    @property
    def config(self) -> HRMConfig:
        """Settings of the model."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the model's weights."""
        ...

    def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer each within its budget; raise ValueError or ThinkingFailed if none has one."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a clock or a failure decided when a decision was recorded, for replay to repeat.

    cycles: H-cycles run; 0: none. failure: reason of a decision that got no answer.
    """

    cycles: int
    late: bool = False
    stop_reason: str = ""
    failure: str | None = None

    @classmethod
    def of(cls, decision: Decision) -> "Recorded":
        """Take what replay needs from a recorded decision."""
        failure = decision.reason if decision.failed else None
        return cls(decision.cycles, decision.late, decision.stop_reason, failure)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A context that the thinker is to be asked about, and what a recording says of it."""

    context: MarketContext
    observation: Observation
    since_ns: int | None  # when its deadline began
    deadline_ms: float  # 0 where the recording says how deep
    record: Recorded | None
    within_bar: bool = False


class ReasoningActor(Actor[Input, Decision]):
    """Answer each context of a live bar with exactly one decision, HOLD wherever there is doubt.

    Bars out of history fill the window and are not decided on: they came late. The decision is
    HOLD, with the reason, while bars are missing, not complete or come from an auction, while the
    hold policy is on, without a valid model, after bad input or a failed inference (`failed`), and
    when the answer came after its deadline (`late`). Nothing is tried twice. Otherwise it is the
    model's best action among those that the position allows.

    A bar that is still open is answered as well, as if it closed now, but it is no bar of the
    window: without a position the decision is HOLD, with one the model chooses between HOLD and
    leaving.

    The same messages give the same decisions only for the same depth of thought: a replay hands in
    `recorded`, which tells for a decision id what had happened then. What is thought about together
    says what each says alone.

    Its memory is all retained messages: the window of bars reaches over days, and the position may
    be older still.
    """

    name = "reasoning"
    heavy = True

    def __init__(
        self,
        settings: ReasoningSettings,
        thinker: Thinker | None,
        catalogue: InstrumentCatalogue,
        initial_capital: Decimal,
        *,
        no_thinker_because: str = "none is loaded",
        deadline_for: Callable[[MarketContext], float] | None = None,
        recorded: Callable[[str], Recorded | None] | None = None,
    ) -> None:
        """`thinker` None: hold always, and give `no_thinker_because` as the reason.

        deadline_for: milliseconds from the market event to the decision, by default the model's
        max_inference_time_ms.
        """
        if not initial_capital.is_finite() or initial_capital <= 0:
            raise ValueError(f"initial_capital must be above 0 rupees, was {initial_capital}")
        self._thinker = thinker
        self._no_thinker_because = no_thinker_because
        self._catalogue = catalogue
        self._initial_capital = initial_capital
        self._deadline_for = deadline_for
        self._recorded = recorded
        # One row of features needs this many bars, whatever the settings say.
        self._needed_bars = max(settings.warm_up_bars, WARMUP_BARS + 1)
        self._window_bars = WINDOW_BARS if thinker is None else thinker.config.inputs.window_bars
        # Quotes and books are noise to a model that was trained without them, and the spread alone
        # is a state that its training never drew.
        self._reads_depth = thinker is not None and thinker.config.inputs.depth
        self._windows: dict[tuple[str, str], FeatureWindow] = {}  # by instrument and timeframe
        self._contexts: dict[tuple[str, str], MarketContext] = {}  # the last of each
        self._closes: dict[tuple[str, str], int] = {}  # when the last bar of each ended
        self.together = settings.max_together
        self._positions: dict[str, Position] = {}
        self._hold_because: str | None = None

    def handle(self, message: Input) -> Iterator[Decision]:
        for decisions in self.handle_many([Arrival(message)]):
            yield from decisions

    def handle_many(self, arrivals: Sequence[Arrival[Input]]) -> Iterator[Sequence[Decision]]:
        """Fold messages one by one, then think about the contexts among them as one batch.

        Thinking changes no state, so each context is decided on as it was when its turn came.
        """
        folded: list[_Asked | Decision | None] = []
        failure: Exception | None = None
        for arrival in arrivals:
            try:
                folded.append(self._fold(arrival))
            except Exception as error:  # noqa: BLE001 - the runner's, after those before it
                failure = error
                break
        yield from self._decided(folded)
        if failure is not None:
            raise failure

    def _fold(self, arrival: Arrival[Input]) -> "_Asked | Decision | None":
        """Take a message in; return what there is to ask, the decision without asking, or None."""
        message, since_ns = arrival.message, arrival.since_ns
        problem = self.remember(message)
        match message:
            case MarketContext(bar=Bar(origin="backfilled")):
                return None  # its close is not the price of now
            case MarketContext():
                window = self._windows.get((message.instrument, message.timeframe))
                return self._consider(message, window, since_ns, problem)
            case PartialBar():
                return self._consider_within(message, since_ns)
            case Position() | PolicySwitch():
                return None

    def _consider(
        self,
        context: MarketContext,
        window: FeatureWindow | None,
        since_ns: int | None,
        problem: str | None,
    ) -> "_Asked | Decision":
        if self._hold_because is not None:
            return hold(context, f"hold policy: {self._hold_because}", policy="hold")
        if self._thinker is None:
            return hold(context, f"no valid model: {self._no_thinker_because}", policy="hold")
        if problem is not None:
            return hold(context, f"no valid bar: {problem}", failed=True)
        if not context.bar.is_continuous:
            return hold(context, "not continuous: the bar's prices come from an auction")
        if not context.bar.is_complete:
            return hold(context, "not complete: the feed was interrupted during the bar")
        seen = 0 if window is None else len(window.stream)
        if window is None or seen < self._needed_bars:
            return hold(context, f"warming up: {seen} of {self._needed_bars} bars")
        try:
            return self._asked(self._thinker, context, window, since_ns)
        except (ValueError, ThinkingFailed) as error:
            return self._failed(context, str(error))

    def _consider_within(
        self, partial: PartialBar, since_ns: int | None
    ) -> "_Asked | Decision | None":
        """Consider an open bar as if it closed now, in a copy of the window."""
        key = (partial.instrument, partial.timeframe)
        before, window = self._contexts.get(key), self._windows.get(key)
        if before is None or window is None:
            return None  # the bars that led to it are not retained any more
        context = context_within(before, partial)
        considered: _Asked | Decision
        if _sign(self._position_on(partial.instrument)) == 0:
            considered = hold(context, "within the bar: there is no position to leave")
        else:
            window, problem = window.copy(), None
            try:
                self._add(window, context.bar)
            except ValueError as error:
                problem = str(error)
            considered = self._consider(context, window, since_ns, problem)
        if isinstance(considered, Decision):
            return msgspec.structs.replace(considered, within_bar=True)
        return replace(considered, within_bar=True)

    def _asked(
        self,
        thinker: Thinker,
        context: MarketContext,
        window: FeatureWindow,
        since_ns: int | None,
    ) -> "_Asked | Decision":
        observation = self._observe(context, window)
        if self._recorded is None:
            return _Asked(context, observation, since_ns, self._deadline_ms(thinker, context), None)
        record = self._recorded(decision_id(context))
        if record is not None and record.failure is not None:
            return hold(context, record.failure, failed=True, model_digest=thinker.digest)
        if record is not None and record.late and record.cycles == 0:
            return too_late(context, 0, thinker.digest)
        if record is None or record.cycles == 0:
            raise ThinkingFailed("the recording holds no thought for this decision")
        return _Asked(context, observation, None, 0.0, record)

    def _question(self, asked: _Asked) -> Question:
        """Say how long, or how deep, to think; not before the whole batch has been folded."""
        if asked.record is not None:
            return asked.observation, RecordedBudget(asked.record.cycles)
        milliseconds = asked.deadline_ms
        reserve_ms = self._reserve_share(asked.context) * milliseconds
        return (
            asked.observation,
            DeadlineBudget(THINKING_SHARE * milliseconds, asked.since_ns, reserve_ms),
        )

    def _reserve_share(self, context: MarketContext) -> float:
        """Return what to leave for contexts of this bar close that are still to come."""
        close_ns = self._closes[context.instrument, context.timeframe]
        bar_ns = timeframe_minutes(context.timeframe) * _NS_PER_MINUTE
        is_awaited = any(
            timeframe == context.timeframe and close_ns - bar_ns <= other_ns < close_ns
            for (_, timeframe), other_ns in self._closes.items()
        )
        return RESERVE_SHARE if is_awaited else 0.0

    def _decided(
        self, folded: Sequence["_Asked | Decision | None"]
    ) -> Iterator[Sequence[Decision]]:
        """Yield the decisions of each message; the thinker is asked when the first one needs it."""
        asked = [one for one in folded if isinstance(one, _Asked)]
        answers: Iterator[Answer] | None = None
        for one in folded:
            if not isinstance(one, _Asked):
                yield () if one is None else (one,)
                continue
            answers = answers or iter(self._ask(asked))
            concluded = self._concluded(one, next(answers))
            if one.within_bar:
                concluded = msgspec.structs.replace(concluded, within_bar=True)
            yield (concluded,)

    def _ask(self, asked: Sequence[_Asked]) -> list[Answer]:
        if self._thinker is None:
            raise ThinkingFailed(self._no_thinker_because)
        try:
            return self._thinker.reason_many([self._question(one) for one in asked])
        except (ValueError, ThinkingFailed) as error:
            return [NoThought(str(error))] * len(asked)

    def _concluded(self, asked: _Asked, answer: Answer) -> Decision:
        context, digest = asked.context, "" if self._thinker is None else self._thinker.digest
        if isinstance(answer, NoThought):
            if answer.is_late:
                return too_late(context, answer.waited_us, digest)
            return self._failed(context, answer.reason)
        try:
            check(answer, asked.observation)
        except ThinkingFailed as error:
            return self._failed(context, str(error))
        if asked.record is None:
            is_late = answer.waited_us + answer.elapsed_us > _US_PER_MS * asked.deadline_ms
            stop_reason: str = answer.stop_reason
        else:
            is_late, stop_reason = asked.record.late, asked.record.stop_reason
        return decision(context, answer, is_late, stop_reason, asked.deadline_ms, digest)

    def _failed(self, context: MarketContext, reason: str) -> Decision:
        digest = "" if self._thinker is None else self._thinker.digest
        return hold(context, f"no valid answer: {reason}", failed=True, model_digest=digest)

    def _deadline_ms(self, thinker: Thinker, context: MarketContext) -> float:
        if self._deadline_for is not None:
            return self._deadline_for(context)
        return thinker.config.performance.max_inference_time_ms

    def remember(self, message: Input) -> str | None:
        """Fold a message without deciding, for a start whose decisions are known already.

        Returns why the bar of a context was refused, or None. `handle` calls this first.
        """
        match message:
            case MarketContext():
                self._contexts[message.instrument, message.timeframe] = message
                return self._remember_bar(message.bar)
            case Position():
                self._positions[message.instrument] = message
            case PolicySwitch():
                self._hold_because = message.reason if message.policy == "hold" else None
            case PartialBar():
                pass  # it leaves nothing behind
        return None

    def _remember_bar(self, bar: Bar) -> str | None:
        if not (bar.is_continuous and bar.is_complete):
            return None  # such bars were not in what the model was trained on
        key = (bar.instrument, bar.timeframe)
        try:
            if key not in self._windows:
                self._windows[key] = FeatureWindow(_length_ns(bar), self._window_bars)
            self._add(self._windows[key], bar)
        except ValueError as error:
            return str(error)
        self._closes[key] = bar.open_ns + _length_ns(bar)
        return None

    def _add(self, window: FeatureWindow, bar: Bar) -> None:
        """Take a bar into a window; ValueError for one that cannot be true.

        It counts as ending a full bar after its open, also where the session cut it short: so it
        does in the candles that the model was trained on, which carry only that time.
        """
        window.add(
            float(bar.open),
            float(bar.high),
            float(bar.low),
            float(bar.close),
            float(bar.volume),
            bar.open_ns + _length_ns(bar),
            days_to_expiry=bar.days_to_expiry,
            spread=float(bar.spread) if self._reads_depth and bar.spread is not None else None,
            depth_imbalance=bar.depth_imbalance if self._reads_depth else None,
        )

    def _observe(self, context: MarketContext, window: FeatureWindow) -> Observation:
        """Turn window, account and context into what the model reads."""
        bars, mask = window.read()
        # The same mean that the model was trained with; the context's own serves the stops.
        atr = window.stream.average_true_range
        position = self._position_on(context.instrument)
        allowed = valid_actions(_sign(position))
        return Observation(
            bars=bars,
            mask=mask,
            instrument=context.instrument,
            timeframe=context.timeframe,
            account=self._account(context.bar, position, atr),
            context=context_features(
                complexity=trained_complexity(context),
                volatility=context.volatility,
                regime=context.regime,
                correlation=None,  # no model has been trained with several instruments or
                news=None,  # with events: training draws both at random together
            ),
            complexity=steering_complexity(context),
            allowed_actions=(
                bool(allowed[0]),
                bool(allowed[1]),
                bool(allowed[2]),
                bool(allowed[3]),
                bool(allowed[4]),
            ),
        )

    def _position_on(self, subject: str) -> Position | None:
        """Return the open view of an instrument, or what was last held of it itself."""
        held = (
            position
            for position in self._positions.values()
            if position.net_quantity and position.subject == subject
        )
        return next(held, self._positions.get(subject))

    def _account(self, bar: Bar, position: Position | None, atr: float) -> NDArray[np.float32]:
        realised = sum((held.realised_pnl for held in self._positions.values()), Decimal(0))
        capital = self._initial_capital + realised
        is_open = position is not None and position.net_quantity != 0
        share, entry_price, unrealised, stop = 0.0, None, Decimal(0), None
        if position is not None and is_open:
            share = self._position_share(position, capital)
            entered_at = position.underlying_entry or position.average_price
            entry_price = float(entered_at)
            # An option counts as if it moved with its underlying, as the model was trained.
            unrealised = position.view * (bar.close - entered_at)
            stop = position.trailing_stop_price or position.stop_price
        return account_features(
            capital=float(capital),
            initial_capital=float(self._initial_capital),
            position=share,
            entry_price=entry_price,
            last_price=float(bar.close),
            unrealised_result=float(unrealised),
            trailing_stop=None if stop is None else float(stop),
            atr=atr,
        )

    def _position_share(self, position: Position, capital: Decimal) -> float:
        """Return the signed share of the largest size that the capital pays for, in [-1, 1]."""
        if position.underlying:
            paid = float(position.capital_used / capital) if capital > 0 else 1.0
            return math.copysign(min(paid, 1.0), position.view)
        instrument = self._catalogue[position.instrument]
        lots = abs(position.net_quantity) / instrument.lot_size
        largest = instrument.max_lots(position.average_price, capital, Decimal(0))
        share = min(lots / largest, 1.0) if largest else 1.0
        return math.copysign(share, position.net_quantity)


def _length_ns(bar: Bar) -> int:
    return timeframe_minutes(bar.timeframe) * _NS_PER_MINUTE


def _sign(position: Position | None) -> int:
    net = position.view if position is not None else 0
    return (net > 0) - (net < 0)
