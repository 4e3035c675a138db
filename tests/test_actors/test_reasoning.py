"""Reasoning: one decision per context, HOLD wherever there is doubt, the same one in a replay."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from builders import (
    MINUTE_NS,
    OPEN_NS,
    a_bar,
    a_catalogue,
    a_context,
    a_policy_switch,
    a_position,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from training_builders import a_table, some_candles

from actors.base import Arrival
from actors.complexity import MarketComplexityActor
from actors.deciding import ThinkingFailed, trained_complexity
from actors.messages import ACTIONS, Decision, MarketContext, Message, PartialBar, Position
from actors.policies import ComplexitySettings, ReasoningSettings
from actors.reasoning import (
    RESERVE_SHARE,
    THINKING_SHARE,
    Input,
    ReasoningActor,
    Recorded,
    Thinker,
)
from hrm.agent import HRMAgent
from hrm.config import HRMConfig
from hrm.features import (
    CONTEXT_NAMES,
    FEATURE_NAMES,
    FEATURE_SCHEMA_SHA256,
    bar_features,
    complexity_score,
    context_features,
)
from hrm.integrity import save_release
from hrm.manifest import FeatureRecord, ModelCard, Vocabularies
from hrm.model import HierarchicalReasoningModel
from hrm.thought import (
    Answer,
    Budget,
    DeadlineBudget,
    NoThought,
    Observation,
    Question,
    RecordedBudget,
    Thought,
)
from hrm.training.market_table import split_by_date
from hrm.training.samples import draw_samples

CAPITAL = Decimal(100_000)
NEEDED = 33
"""Bars until the first row of features."""


class ScriptedThinker:
    """Answer what the test says, and keep what was asked."""

    digest = "d" * 64
    config = HRMConfig.preset("small")

    def __init__(self, action: int = 4, **changes: Any) -> None:
        self._thought = replace(
            Thought(
                action=action,
                size_fraction=0.6,
                confidence=0.7,
                h_confidence=0.5,
                l_confidence=0.4,
                value=0.1,
                probabilities=(0.1, 0.1, 0.05, 0.05, 0.7),
                segments=3,
                cycles=6,
                stop_reason="halted",
                residual=0.01,
                q_halt=0.8,
                q_continue=0.2,
                elapsed_us=20_000,
            ),
            **changes,
        )
        self.observations: list[Observation] = []
        self.budgets: list[Budget] = []
        self.batches: list[int] = []

    def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
        self.batches.append(len(questions))
        for observation, budget in questions:
            self.observations.append(observation)
            self.budgets.append(budget)
        return [self._thought] * len(questions)


class FailingThinker(ScriptedThinker):
    """Give no answer."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
        raise self._error


def an_actor(thinker: Thinker | None, warm_up_bars: int = 1, **arguments: Any) -> ReasoningActor:
    return ReasoningActor(
        ReasoningSettings(warm_up_bars=warm_up_bars),
        thinker,
        a_catalogue(),
        CAPITAL,
        **arguments,
    )


def contexts(count: int, first: int = 0, **fields: Any) -> Iterator[MarketContext]:
    """Return contexts of consecutive bars on a wave, from bar `first` on."""
    for number in range(first, first + count):
        price = Decimal(str(round(22000 + 40 * math.sin(number / 3), 2)))
        bar = a_bar(price, number, high=price + 5, low=price - 5, **fields)
        yield a_context(bar, missing=("news", "correlation"), bars_seen=number + 1)


def decisions_of(actor: ReasoningActor, *messages: Message) -> list[Decision]:
    return [output for output in outputs_of(actor, *messages) if isinstance(output, Decision)]


def decision_after(actor: ReasoningActor, *before: Message) -> Decision:
    """Return the decision of the bar after warming up and after the messages given."""
    outputs_of(actor, *contexts(NEEDED - 1), *before)
    [decision] = decisions_of(actor, *contexts(1, first=NEEDED - 1))
    return decision


# Holding


def test_every_context_gets_exactly_one_decision() -> None:
    decisions = decisions_of(an_actor(ScriptedThinker()), *contexts(40), a_position())

    assert [decision.id for decision in decisions] == [
        f"Nifty@{OPEN_NS + (number + 1) * 5 * MINUTE_NS}" for number in range(40)
    ]


def test_it_holds_and_says_so_while_warming_up() -> None:
    thinker = ScriptedThinker(action=0)

    decisions = decisions_of(an_actor(thinker, warm_up_bars=64), *contexts(64))

    assert {decision.action for decision in decisions[:-1]} == {"HOLD"}
    assert decisions[11].reason == "warming up: 12 of 64 bars"
    assert decisions[-1].action == "BUY_LONG"
    assert len(thinker.observations) == 1


def test_warm_up_is_never_shorter_than_one_row_of_features_takes() -> None:
    decisions = decisions_of(an_actor(ScriptedThinker(action=0)), *contexts(NEEDED))

    assert decisions[-2].reason == "warming up: 32 of 33 bars"
    assert decisions[-1].action == "BUY_LONG"


def test_each_instrument_and_timeframe_warms_up_by_itself() -> None:
    actor = an_actor(ScriptedThinker(action=0))
    outputs_of(actor, *contexts(NEEDED))

    others = decisions_of(
        actor, *contexts(1, instrument="Bank_Nifty"), *contexts(1, timeframe="15")
    )

    assert [decision.reason for decision in others] == ["warming up: 1 of 33 bars"] * 2


def test_the_hold_policy_holds_until_the_model_is_back() -> None:
    actor = an_actor(ScriptedThinker(action=0))

    held = decision_after(actor, a_policy_switch("hold", reason="three late"))
    [thought] = decisions_of(actor, a_policy_switch("hrm"), *contexts(1, first=NEEDED))

    assert (held.action, held.policy, held.reason) == ("HOLD", "hold", "hold policy: three late")
    assert (thought.action, thought.policy) == ("BUY_LONG", "hrm")


def test_without_a_model_it_holds_and_says_why() -> None:
    actor = an_actor(None, no_thinker_because="hrm.safetensors has SHA-256 12ab")

    decision = decision_after(actor)

    assert (decision.action, decision.policy) == ("HOLD", "hold")
    assert decision.reason == "no valid model: hrm.safetensors has SHA-256 12ab"


@pytest.mark.parametrize(
    "error",
    [ValueError("the model's value is [nan]"), ThinkingFailed("the thinking process has died")],
)
def test_a_failed_inference_is_a_hold_and_not_tried_twice(error: Exception) -> None:
    decision = decision_after(an_actor(FailingThinker(error)))

    assert (decision.action, decision.failed, decision.late) == ("HOLD", True, False)
    assert decision.reason == f"no valid answer: {error}"
    assert decision.cycles == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"open": Decimal("NaN")}, "open must be a finite number, was nan"),
        ({"low": Decimal(-3)}, "low must be positive, was -3"),
        ({"high": Decimal(1)}, "high must not be below low, was 1"),
        ({"volume": -1}, "volume must not be negative, was -1"),
        ({"timeframe": "soon"}, "timeframe must be minutes"),
    ],
)
def test_a_bar_that_cannot_be_true_is_a_failed_hold(fields: dict[str, Any], problem: str) -> None:
    actor = an_actor(ScriptedThinker(action=0))
    outputs_of(actor, *contexts(NEEDED))

    [decision] = decisions_of(actor, a_context(a_bar(number=NEEDED, **fields)))

    assert (decision.action, decision.failed) == ("HOLD", True)
    assert decision.reason.startswith(f"no valid bar: {problem}")


def test_a_bar_that_cannot_be_true_does_not_spoil_those_after_it() -> None:
    actor = an_actor(ScriptedThinker(action=0))
    outputs_of(actor, *contexts(NEEDED), a_context(a_bar(number=NEEDED, open=Decimal("NaN"))))

    [decision] = decisions_of(actor, *contexts(1, first=NEEDED + 1))

    assert decision.action == "BUY_LONG"


def test_a_bar_that_came_before_is_a_failed_hold() -> None:
    actor = an_actor(ScriptedThinker(action=0))
    outputs_of(actor, *contexts(NEEDED))

    [decision] = decisions_of(actor, *contexts(1, first=NEEDED - 1))

    assert decision.failed
    assert "must be later than that of the bar before" in decision.reason


def test_context_numbers_out_of_range_are_a_failed_hold() -> None:
    actor = an_actor(ScriptedThinker(action=0))
    outputs_of(actor, *contexts(NEEDED - 1))

    [context] = contexts(1, first=NEEDED - 1)
    [decision] = decisions_of(actor, msgspec.structs.replace(context, volatility=float("nan")))

    assert (decision.action, decision.failed) == ("HOLD", True)
    assert "volatility must be in [0, 1], was nan" in decision.reason


def test_an_unknown_instrument_with_a_position_is_a_failed_hold() -> None:
    actor = an_actor(ScriptedThinker(action=2))
    outputs_of(actor, *contexts(NEEDED - 1, instrument="Gold"), a_position(75, instrument="Gold"))

    [decision] = decisions_of(actor, *contexts(1, first=NEEDED - 1, instrument="Gold"))

    assert decision.failed
    assert "unknown instrument 'Gold'" in decision.reason


def test_an_answer_after_the_deadline_is_a_late_hold() -> None:
    thinker = ScriptedThinker(action=0, elapsed_us=50_001, stop_reason="deadline")

    decision = decision_after(an_actor(thinker))

    assert (decision.action, decision.late, decision.failed) == ("HOLD", True, False)
    assert decision.reason == "late: the answer came after its deadline"
    assert (decision.size_fraction, decision.confidence) == (0.0, 0.0)
    assert (decision.cycles, decision.elapsed_us) == (6, 50_001)


def test_an_answer_at_the_deadline_is_in_time() -> None:
    decision = decision_after(an_actor(ScriptedThinker(action=0, elapsed_us=50_000)))

    assert (decision.action, decision.late) == ("BUY_LONG", False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"action": 2}, "action 2 is not allowed in this position"),
        ({"action": 7}, "action 7 is not allowed in this position"),
        ({"action": 0, "confidence": float("nan")}, "confidence must be in [0, 1], was nan"),
        ({"action": 0, "size_fraction": 1.5}, "size_fraction must be in [0, 1], was 1.5"),
    ],
)
def test_an_answer_that_cannot_be_one_is_a_failed_hold(
    changes: dict[str, Any], problem: str
) -> None:
    decision = decision_after(an_actor(ScriptedThinker(**changes)))

    assert (decision.action, decision.failed) == ("HOLD", True)
    assert decision.reason == f"no valid answer: {problem}"


# Within a bar


def a_partial(number: int = NEEDED, price: str = "21900", **fields: Any) -> PartialBar:
    """Return bar `number`, two minutes after it began, with a fall to `price` in it."""
    open_ns = OPEN_NS + number * 5 * MINUTE_NS
    given_: dict[str, Any] = {
        "instrument": "Nifty",
        "timeframe": "5",
        "open": Decimal(22000),
        "high": Decimal(22010),
        "low": Decimal(price),
        "last_price": Decimal(price),
        "volume": 300,
        "open_ns": open_ns,
        "as_of_ns": open_ns + 2 * MINUTE_NS,
        "ticks": 40,
        "reference_price": Decimal(22000),
    }
    return PartialBar(**(given_ | fields))


def closed(partial: PartialBar) -> MarketContext:
    """Return the context that this bar leads to if it goes on no further."""
    bar = a_bar(
        partial.last_price,
        NEEDED,
        open=partial.open,
        high=partial.high,
        low=partial.low,
        volume=partial.volume,
    )
    return a_context(bar, missing=("news", "correlation"), bars_seen=NEEDED + 1)


def test_within_a_bar_and_without_a_position_there_is_nothing_to_think_about() -> None:
    thinker = ScriptedThinker(action=0)
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED))
    thinker.observations.clear()

    [decision] = decisions_of(actor, a_partial())

    assert (decision.action, decision.within_bar, decision.failed) == ("HOLD", True, False)
    assert decision.id == f"Nifty@{a_partial().as_of_ns}"
    assert thinker.observations == []


@pytest.mark.parametrize(
    ("position", "leaves"),
    [
        (a_position(75), "CLOSE_LONG"),
        (a_position(-75), "CLOSE_SHORT"),
        (a_position(75, instrument="A put", underlying="Nifty", option_kind="PE"), "CLOSE_SHORT"),
    ],
)
def test_within_a_bar_a_position_can_only_be_left_or_held(position: Position, leaves: str) -> None:
    thinker = ScriptedThinker(action=ACTIONS.index(leaves))
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED), position)

    [decision] = decisions_of(actor, a_partial())

    allowed = dict(zip(ACTIONS, thinker.observations[-1].allowed_actions, strict=True))
    assert [action for action, may in allowed.items() if may] == [leaves, "HOLD"]
    assert (decision.action, decision.within_bar) == (leaves, True)
    assert (decision.reference_price, decision.atr) == (Decimal(21900), Decimal(20))
    assert decision.bar_close_ns == a_partial().as_of_ns


def test_the_model_reads_an_open_bar_as_if_it_closed_now() -> None:
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED), a_position(75))

    outputs_of(actor, a_partial(), closed(a_partial()))

    within, at_close = thinker.observations[-2:]
    assert within.bars.tobytes() == at_close.bars.tobytes()
    assert within.account.tobytes() == at_close.account.tobytes()


def test_an_open_bar_leaves_nothing_behind_in_what_the_model_reads_later() -> None:
    seen = []
    for partials in (
        [],
        [a_partial(), a_partial(price="21800", as_of_ns=a_partial().as_of_ns + 1)],
    ):
        thinker = ScriptedThinker()
        actor = an_actor(thinker)
        outputs_of(actor, *contexts(NEEDED), a_position(75), *partials)
        outputs_of(actor, *contexts(2, first=NEEDED))
        seen.append([observation.bars.tobytes() for observation in thinker.observations[-2:]])

    assert seen[0] == seen[1]


def test_an_open_bar_that_cannot_be_true_is_a_failed_hold() -> None:
    actor = an_actor(ScriptedThinker(action=2))
    outputs_of(actor, *contexts(NEEDED), a_position(75))

    [decision] = decisions_of(actor, a_partial(high=Decimal(1)))

    assert (decision.action, decision.failed, decision.within_bar) == ("HOLD", True, True)


def test_an_open_bar_of_which_no_closed_one_is_known_is_passed_over() -> None:
    assert decisions_of(an_actor(ScriptedThinker()), a_partial()) == []


def test_a_late_answer_within_a_bar_is_a_hold_as_any_other() -> None:
    actor = an_actor(ScriptedThinker(action=2, elapsed_us=50_001))
    outputs_of(actor, *contexts(NEEDED), a_position(75))

    [decision] = decisions_of(actor, a_partial())

    assert (decision.action, decision.late, decision.within_bar) == ("HOLD", True, True)


# Deciding


def test_a_decision_carries_everything_the_thought_says() -> None:
    thinker = ScriptedThinker(action=0)

    decision = decision_after(an_actor(thinker))

    [context] = contexts(1, first=NEEDED - 1)
    assert decision == Decision(
        id=f"Nifty@{context.bar.close_ns}",
        instrument="Nifty",
        timeframe="5",
        action="BUY_LONG",
        size_fraction=0.6,
        confidence=0.7,
        policy="hrm",
        reference_price=context.bar.close,
        atr=Decimal(20),
        bar_close_ns=context.bar.close_ns,
        reason="halted after 6 cycles, 70% sure",
        market_complexity=0.4,
        reasoning_depth=3,
        cycles=6,
        stop_reason="halted",
        h_confidence=0.5,
        l_confidence=0.4,
        value=0.1,
        probabilities=(0.1, 0.1, 0.05, 0.05, 0.7),
        budget_ms=50.0,
        elapsed_us=20_000,
        batch_size=1,
        model_digest="d" * 64,
    )


@pytest.mark.parametrize(
    ("net_quantity", "allowed"),
    [
        (0, (True, True, False, False, True)),
        (75, (False, False, True, False, True)),
        (-75, (False, False, False, True, True)),
    ],
)
def test_the_position_says_which_actions_are_allowed(
    net_quantity: int, allowed: tuple[bool, ...]
) -> None:
    thinker = ScriptedThinker()

    decision_after(an_actor(thinker), a_position(net_quantity))

    assert thinker.observations[-1].allowed_actions == allowed


def test_positions_of_other_instruments_allow_entries() -> None:
    thinker = ScriptedThinker()

    decision_after(an_actor(thinker), a_position(35, instrument="Bank_Nifty"))

    assert thinker.observations[-1].allowed_actions == (True, True, False, False, True)


def test_an_exit_leaves_the_whole_position_and_a_hold_wants_nothing() -> None:
    exit_ = decision_after(an_actor(ScriptedThinker(action=2)), a_position(75))
    hold = decision_after(an_actor(ScriptedThinker(action=4)), a_position(75))

    assert (exit_.action, exit_.size_fraction) == ("CLOSE_LONG", 1.0)
    assert (hold.action, hold.size_fraction) == ("HOLD", 0.0)


def test_the_model_sees_the_features_that_training_computes() -> None:
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    given_contexts = list(contexts(150))

    outputs_of(actor, *given_contexts)

    bars = [context.bar for context in given_contexts]
    whole = bar_features(
        open=[float(bar.open) for bar in bars],
        high=[float(bar.high) for bar in bars],
        low=[float(bar.low) for bar in bars],
        close=[float(bar.close) for bar in bars],
        volume=[bar.volume for bar in bars],
        close_ns=[bar.close_ns for bar in bars],
        bar_ns=5 * MINUTE_NS,
    )
    seen = thinker.observations[-1]
    assert np.array_equal(seen.bars, whole[-64:])
    assert seen.mask.all()
    assert (seen.instrument, seen.timeframe, seen.complexity) == ("Nifty", "5", 0.4)


def test_a_bar_cut_short_by_the_session_counts_as_a_whole_one() -> None:
    whole, cut = ScriptedThinker(), ScriptedThinker()
    [last] = contexts(1, first=NEEDED - 1)
    short = msgspec.structs.replace(last.bar, close_ns=last.bar.close_ns - MINUTE_NS)

    decision_after(an_actor(whole))
    actor = an_actor(cut)
    outputs_of(actor, *contexts(NEEDED - 1), msgspec.structs.replace(last, bar=short))

    assert np.array_equal(whole.observations[-1].bars, cut.observations[-1].bars)


def test_the_model_is_told_of_the_days_to_expiry_where_the_bar_is() -> None:
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED))

    outputs_of(actor, *contexts(1, first=NEEDED, days_to_expiry=3))

    column = FEATURE_NAMES.index("expiry_nearness")
    without, told = (one.bars[-1, column] for one in thinker.observations)
    assert (without, told) == (0.0, 0.25)


@pytest.mark.parametrize("is_trained_on_depth", [True, False])
def test_spread_and_book_are_shown_to_a_model_that_was_trained_on_them_alone(
    is_trained_on_depth: bool,
) -> None:
    thinker = ScriptedThinker()
    thinker.config = thinker.config.changed(inputs={"depth": is_trained_on_depth})
    actor = an_actor(thinker)

    outputs_of(actor, *contexts(NEEDED, spread=Decimal(2), depth_imbalance=-0.5))

    columns = [FEATURE_NAMES.index(name) for name in ("depth_imbalance", "depth_known", "spread")]
    imbalance, known, spread = thinker.observations[-1].bars[-1, columns].tolist()
    assert (imbalance, known) == ((-0.5, 1.0) if is_trained_on_depth else (0.0, 0.0))
    assert (spread > 0.0) == is_trained_on_depth


def test_a_bar_of_an_auction_is_a_hold_and_not_shown_to_the_model() -> None:
    thinker, plain = ScriptedThinker(action=0), ScriptedThinker(action=0)
    actor, without = an_actor(thinker), an_actor(plain)
    before = list(contexts(NEEDED))
    [auction] = contexts(1, first=NEEDED, is_continuous=False)
    [after] = contexts(1, first=NEEDED + 1)

    [decision] = decisions_of(actor, *before, auction)[-1:]
    outputs_of(actor, after)
    outputs_of(without, *before, after)

    assert (decision.action, decision.failed) == ("HOLD", False)
    assert decision.reason == "not continuous: the bar's prices come from an auction"
    assert np.array_equal(thinker.observations[-1].bars, plain.observations[-1].bars)


@pytest.mark.parametrize(
    "known",
    [
        {"missing": ("news",), "correlation_score": 0.25, "complexity": 0.45},
        {"missing": ("correlation",), "news_impact": 0.25, "complexity": 0.45},
        {"missing": (), "correlation_score": 0.25, "news_impact": 0.25, "complexity": 0.4},
    ],
)
def test_correlation_and_news_change_nothing_that_the_model_reads(known: dict[str, Any]) -> None:
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED))
    [last] = contexts(1, first=NEEDED)

    outputs_of(actor, msgspec.structs.replace(last, **known))

    read = context_features(complexity=complexity_score(0.5, 0.5), volatility=0.5, regime="ranging")
    assert all(np.array_equal(one.context, read) for one in thinker.observations)


def test_whatever_is_known_live_the_model_reads_states_that_training_draws() -> None:
    table = a_table()
    samples = draw_samples(table, split_by_date(table).train, 64, np.random.default_rng(1))
    bars, context = samples.observation.bars, samples.observation.context
    depth = FEATURE_NAMES.index("depth_known")
    sources = CONTEXT_NAMES.index("sources_known")
    drawn_depth = set(bars[samples.observation.bars_mask][:, depth].tolist())
    drawn_sources = set(context[:, sources].tolist())
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    outputs_of(actor, *contexts(NEEDED, spread=Decimal(2), depth_imbalance=-0.5))

    for number, missing in enumerate([(), ("news",), ("correlation",)]):
        [last] = contexts(1, first=NEEDED + number, spread=Decimal(2))
        outputs_of(actor, msgspec.structs.replace(last, missing=missing, correlation_score=0.5))

    assert drawn_depth == drawn_sources == {0.0, 1.0}
    assert len(thinker.observations) == 4
    for one in thinker.observations:
        assert set(one.bars[one.mask][:, depth].tolist()) <= drawn_depth
        assert float(one.context[sources]) in drawn_sources


def test_complexity_is_that_of_the_training_table_at_every_bar() -> None:
    candles = some_candles(400)
    table = a_table(candles)
    actor = MarketComplexityActor(ComplexitySettings())
    prices = (candles.open, candles.high, candles.low, candles.close)
    bars = [
        a_bar(close, number, open=opened, high=high, low=low)
        for number, (opened, high, low, close) in enumerate(
            zip(*([Decimal(x) for x in column.tolist()] for column in prices), strict=True)
        )
    ]

    live = [
        trained_complexity(msgspec.structs.replace(context, missing=(), correlation_score=1.0))
        for bar in bars
        for context in actor.handle(bar)
    ]

    of_training = table.context[table.window : table.window + len(candles), 0]
    assert np.array_equal(np.array(live, dtype=np.float32), of_training)


def test_bars_that_training_never_had_change_neither_what_is_read_nor_the_range_of_stops() -> None:
    bars = [context.bar for context in contexts(200)]
    spoilt: dict[int, dict[str, Any]] = {60: {"is_complete": False}, 61: {"is_complete": False}}
    spoilt |= {number: {"is_continuous": False} for number in range(140, 150)}
    mixed = [msgspec.structs.replace(bar, **spoilt.get(n, {})) for n, bar in enumerate(bars)]
    whole = [bar for number, bar in enumerate(bars) if number not in spoilt]
    seen: list[tuple[Observation, Decision]] = []

    for given_bars in (mixed, whole):
        thinker = ScriptedThinker(action=0)
        actor, complexity = an_actor(thinker), MarketComplexityActor(ComplexitySettings())
        decisions = decisions_of(
            actor, *(one for bar in given_bars for one in complexity.handle(bar))
        )
        assert len(decisions) == len(given_bars)
        seen.append((thinker.observations[-1], decisions[-1]))

    (read, decided), (read_alone, decided_alone) = seen
    assert np.array_equal(read.bars, read_alone.bars)
    assert np.array_equal(read.context, read_alone.context)
    assert decided == decided_alone
    assert decided.atr is not None


def test_the_account_is_described_by_position_and_last_price() -> None:
    thinker = ScriptedThinker()
    [last] = contexts(1, first=NEEDED - 1)
    entry = last.bar.close - 20
    position = a_position(
        75,
        average_price=entry,
        realised_pnl=Decimal(-2000),
        trailing_stop_price=last.bar.close - 40,
        stop_price=last.bar.close - 60,
    )

    decision_after(an_actor(thinker), position)

    capital, share, entry_distance, result, is_open, stop_distance = thinker.observations[
        -1
    ].account.tolist()
    instrument = a_catalogue()["Nifty"]
    largest = instrument.max_lots(entry, CAPITAL - 2000, Decimal(0))
    assert capital == pytest.approx(-0.02)
    assert share == pytest.approx(1 / largest)
    assert result == pytest.approx(1.5)  # percent of the initial capital: 20 points x 75 units
    assert is_open == 1.0
    assert stop_distance == pytest.approx(2 * entry_distance)


def test_a_short_position_is_a_negative_share_and_never_more_than_all() -> None:
    thinker = ScriptedThinker()

    decision_after(an_actor(thinker), a_position(-75_000, average_price=Decimal(22000)))

    assert thinker.observations[-1].account[1] == -1.0


def test_the_thinker_gets_a_share_of_the_deadline() -> None:
    default, own = ScriptedThinker(), ScriptedThinker()

    decision_after(an_actor(default))
    decision = decision_after(an_actor(own, deadline_for=lambda context: 20.0))

    assert default.budgets == [DeadlineBudget(THINKING_SHARE * 50.0)]
    assert own.budgets == [DeadlineBudget(THINKING_SHARE * 20.0)]
    assert decision.budget_ms == 20.0


def test_remembering_leaves_the_same_state_as_deciding_without_thinking() -> None:
    thinker = ScriptedThinker(action=0)
    remembering, deciding = an_actor(thinker), an_actor(ScriptedThinker(action=0))
    before: list[MarketContext | Position] = [*contexts(40), a_position(75), a_position(0)]
    for message in before:
        remembering.remember(message)
    outputs_of(deciding, *before)

    after = [decisions_of(actor, *contexts(1, first=40)) for actor in (remembering, deciding)]

    assert after[0] == after[1]
    assert len(thinker.observations) == 1


def test_an_impossible_capital_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="initial_capital must be above 0 rupees, was NaN"):
        ReasoningActor(ReasoningSettings(), None, a_catalogue(), Decimal("NaN"))


# Together


def at_one_close(
    names: Sequence[str], number: int, since_ns: int | None = None
) -> list[Arrival[Input]]:
    return [
        Arrival(context, since_ns)
        for name in names
        for context in contexts(1, first=number, instrument=name)
    ]


def warmed_up(thinker: Thinker, names: Sequence[str], **arguments: Any) -> ReasoningActor:
    actor = an_actor(thinker, **arguments)
    for name in names:
        outputs_of(actor, *contexts(NEEDED - 1, instrument=name))
    return actor


PAIR = ("Nifty", "Bank_Nifty")


def test_contexts_that_come_together_are_one_batch_and_answered_in_order() -> None:
    thinker = ScriptedThinker(action=0, batch_size=2)
    actor = warmed_up(thinker, PAIR)
    first, second = at_one_close(PAIR, NEEDED - 1)

    answers = list(actor.handle_many([first, Arrival(a_position()), second]))

    assert [[one.instrument for one in each] for each in answers] == [["Nifty"], [], ["Bank_Nifty"]]
    assert thinker.batches == [2]
    assert {one.batch_size for each in answers for one in each} == {2}


def test_each_context_is_decided_on_as_it_was_when_its_turn_came() -> None:
    thinker = ScriptedThinker(action=4)
    actor = warmed_up(thinker, PAIR)
    first, second = at_one_close(PAIR, NEEDED - 1)

    answers = list(
        actor.handle_many(
            [
                first,
                Arrival(a_position(35, instrument="Bank_Nifty")),
                second,
                Arrival(a_policy_switch("hold", reason="enough")),
                *at_one_close(["Nifty"], NEEDED),
            ]
        )
    )

    assert [seen.allowed_actions[2] for seen in thinker.observations] == [False, True]
    assert [one.reason for one in answers[-1]] == ["hold policy: enough"]


def test_one_that_cannot_be_thought_about_does_not_concern_the_others() -> None:
    class Choosy(ScriptedThinker):
        def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
            answers = super().reason_many(questions)
            return [NoThought("its numbers are wrong"), *answers[1:]]

    actor = warmed_up(Choosy(action=0), PAIR)

    [[failed], [good]] = actor.handle_many(at_one_close(PAIR, NEEDED - 1))

    assert (failed.action, failed.failed) == ("HOLD", True)
    assert failed.reason == "no valid answer: its numbers are wrong"
    assert (good.action, good.failed) == ("BUY_LONG", False)


def test_a_bug_stops_at_its_message_after_those_before_it() -> None:
    actor = warmed_up(ScriptedThinker(action=0), PAIR)
    first, second = at_one_close(PAIR, NEEDED - 1)
    broken = Arrival(msgspec.structs.replace(second.message, bar=None))
    answers = actor.handle_many([first, broken, second])

    [decision] = next(answers)

    assert decision.action == "BUY_LONG"
    with pytest.raises(AttributeError):
        next(answers)


def test_the_deadline_began_with_the_market_event() -> None:
    thinker = ScriptedThinker()

    list(warmed_up(thinker, PAIR).handle_many(at_one_close(PAIR, NEEDED - 1, since_ns=123)))

    assert thinker.budgets[0] == DeadlineBudget(THINKING_SHARE * 50.0, 123, 0.0)


def test_time_is_left_for_an_instrument_whose_bar_is_still_to_come() -> None:
    thinker = ScriptedThinker()
    actor = warmed_up(thinker, PAIR)

    early, last = at_one_close(PAIR, NEEDED - 1)
    list(actor.handle_many([early]))
    list(actor.handle_many([last]))
    for number in range(NEEDED, NEEDED + 3):  # the other one is quiet
        list(actor.handle_many(at_one_close(["Nifty"], number)))

    reserves = [
        budget.reserve_ms for budget in thinker.budgets if isinstance(budget, DeadlineBudget)
    ]
    assert reserves == [RESERVE_SHARE * 50.0, 0.0, RESERVE_SHARE * 50.0, 0.0, 0.0]


def test_what_waited_counts_against_the_deadline() -> None:
    thinker = ScriptedThinker(action=0, waited_us=30_000, elapsed_us=20_001)

    decision = decision_after(an_actor(thinker))

    assert (decision.action, decision.late) == ("HOLD", True)
    assert (decision.waited_us, decision.budget_ms) == (30_000, 20.0)


def test_no_time_left_is_a_late_hold_and_so_it_is_in_a_replay() -> None:
    class Overdue(ScriptedThinker):
        def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
            return [NoThought("no time", is_late=True, waited_us=51_000)] * len(questions)

    live = decision_after(an_actor(Overdue()))

    replayed = decision_after(
        an_actor(ScriptedThinker(action=0), recorded=lambda id_: Recorded.of(live))
    )

    assert (live.action, live.late, live.failed, live.waited_us) == ("HOLD", True, False, 51_000)
    assert live.reason == "late: its deadline left no time to think"
    assert without_clock(replayed) == without_clock(live)


# Replay


def without_clock(decision: Decision) -> Decision:
    return msgspec.structs.replace(decision, elapsed_us=0, budget_ms=0.0, waited_us=0, batch_size=0)


def test_a_replay_runs_to_the_recorded_depth() -> None:
    thinker = ScriptedThinker(action=0)
    actor = an_actor(thinker, recorded=lambda id_: Recorded(cycles=11, stop_reason="deadline"))

    decision = decision_after(actor)

    assert thinker.budgets == [RecordedBudget(11)]
    assert decision.stop_reason == "deadline"


@pytest.mark.parametrize(
    "thinker",
    [
        ScriptedThinker(action=0),
        ScriptedThinker(action=1, elapsed_us=90_000, stop_reason="deadline"),
        FailingThinker(ThinkingFailed("the thinking process has died")),
        ScriptedThinker(action=3),
    ],
    ids=["in time", "late", "failed", "not allowed"],
)
def test_a_replay_repeats_decisions_whatever_the_clock_did(thinker: ScriptedThinker) -> None:
    messages = [*contexts(36), a_policy_switch("hold"), *contexts(2, first=36)]
    live = decisions_of(an_actor(thinker), *messages)
    known = {decision.id: Recorded.of(decision) for decision in live}
    swift = ScriptedThinker(
        action=1 if any(decision.late for decision in live) else 0, elapsed_us=1
    )

    replayed = decisions_of(an_actor(swift, recorded=known.get), *messages)

    assert [without_clock(decision) for decision in replayed] == [
        without_clock(decision) for decision in live
    ]


def test_a_decision_without_a_recorded_thought_is_a_failed_hold() -> None:
    absent = decision_after(an_actor(ScriptedThinker(action=0), recorded=lambda id_: None))
    empty = decision_after(an_actor(ScriptedThinker(action=0), recorded=lambda id_: Recorded(0)))

    assert absent.failed
    assert empty.failed
    assert absent.reason == ("no valid answer: the recording holds no thought for this decision")


# With the real agent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> HRMAgent:
    """Return an agent with an untrained small model, released and loaded as a trained one is."""
    folder: Path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = HRMConfig.preset("small")
    card = ModelCard(
        config=config,
        features=FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256),
        vocabularies=Vocabularies(instruments={"Nifty": 1}, timeframes={"5": 1}),
        created="2026-01-01T00:00:00Z",
    )
    save_release(folder, HierarchicalReasoningModel(config), card)
    return HRMAgent.load(folder, time.monotonic_ns)


def patiently(context: MarketContext) -> float:
    return 60_000.0


def test_a_real_agent_decides_and_its_replay_agrees_to_the_last_bit(agent: HRMAgent) -> None:
    messages = [*contexts(40), a_position(75), *contexts(3, first=40)]
    live = decisions_of(an_actor(agent, deadline_for=patiently), *messages)
    known = {decision.id: Recorded.of(decision) for decision in live}

    replayed = decisions_of(an_actor(agent, recorded=known.get), *messages)

    thought = [decision for decision in live if decision.cycles]
    assert len(thought) == 40 - (NEEDED - 1) + 3
    assert not any(decision.failed or decision.late for decision in live)
    assert {decision.model_digest for decision in thought} == {agent.digest}
    assert all(sum(decision.probabilities) == pytest.approx(1.0) for decision in thought)
    assert [without_clock(decision) for decision in replayed] == [
        without_clock(decision) for decision in live
    ]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_together_or_one_by_one_a_real_agent_decides_the_same(
    agent: HRMAgent, sizes: list[int]
) -> None:
    names = ("Nifty", "Bank_Nifty", "Reliance")
    messages: list[Input] = [
        context
        for number in range(NEEDED, NEEDED + 9)
        for name in names
        for context in contexts(1, first=number, instrument=name)
    ]
    messages.insert(5, a_position(35, instrument="Bank_Nifty"))
    actor = warmed_up(agent, names, deadline_for=patiently)
    together: list[Decision] = []
    rest = iter(messages)
    for size in [*sizes, len(messages)]:
        arrivals = [Arrival(message) for message in itertools.islice(rest, size)]
        together += [one for each in actor.handle_many(arrivals) for one in each]
    known = {decision.id: Recorded.of(decision) for decision in together}

    alone = decisions_of(warmed_up(agent, names, deadline_for=patiently), *messages)
    replayed = decisions_of(warmed_up(agent, names, recorded=known.get), *messages)

    assert not any(decision.failed or decision.late for decision in together)
    assert (
        [without_clock(decision) for decision in together]
        == [without_clock(decision) for decision in alone]
        == [without_clock(decision) for decision in replayed]
    )


POSSIBLE = {
    0: {"BUY_LONG", "SELL_SHORT", "HOLD"},
    1: {"CLOSE_LONG", "HOLD"},
    -1: {"CLOSE_SHORT", "HOLD"},
}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([-150, -75, 0, 75, 150]), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_no_action_is_ever_yielded_that_its_position_does_not_allow(
    agent: HRMAgent, quantities: list[int], shift: int
) -> None:
    actor = an_actor(agent, recorded=lambda id_: Recorded(cycles=1 + shift % 4))
    outputs_of(actor, *contexts(NEEDED, first=shift))

    for number, quantity in enumerate(quantities):
        outputs_of(actor, a_position(quantity))
        [decision] = decisions_of(actor, *contexts(1, first=shift + NEEDED + number))

        assert not decision.failed
        assert decision.action in POSSIBLE[(quantity > 0) - (quantity < 0)]


def test_a_forecast_sets_the_depth_and_the_model_still_reads_the_formula() -> None:
    thinker = ScriptedThinker()
    actor = an_actor(thinker)
    decisions_of(actor, *contexts(NEEDED - 1))
    (context,) = contexts(1, NEEDED - 1)

    known = msgspec.structs.replace(context, demand=0.85)
    [decision] = decisions_of(actor, known)

    observation = thinker.observations[-1]
    assert observation.complexity == decision.market_complexity == 0.85
    assert observation.context[0] == pytest.approx(trained_complexity(context))


def test_bars_out_of_history_fill_the_window_and_are_not_decided_on() -> None:
    thinker = ScriptedThinker(action=0)
    actor = an_actor(thinker)

    past = decisions_of(actor, *contexts(NEEDED - 1, origin="backfilled"))
    [decision] = decisions_of(actor, *contexts(1, first=NEEDED - 1))

    assert past == []
    assert decision.action == "BUY_LONG"
    assert len(thinker.observations) == 1


def test_a_bar_that_misses_ticks_is_a_hold_and_not_shown_to_the_model() -> None:
    thinker, plain = ScriptedThinker(action=0), ScriptedThinker(action=0)
    actor, without = an_actor(thinker), an_actor(plain)
    before = list(contexts(NEEDED))
    [cut] = contexts(1, first=NEEDED, is_complete=False)
    [after] = contexts(1, first=NEEDED + 1)

    [decision] = decisions_of(actor, *before, cut)[-1:]
    outputs_of(actor, after)
    outputs_of(without, *before, after)

    assert (decision.action, decision.failed) == ("HOLD", False)
    assert decision.reason == "not complete: the feed was interrupted during the bar"
    assert np.array_equal(thinker.observations[-1].bars, plain.observations[-1].bars)
