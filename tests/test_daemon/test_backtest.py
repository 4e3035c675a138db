"""Backtest: the decisions and fills of paper trading, from candles alone, the same every time."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import SECOND_NS, a_bar, a_fill, a_position, an_order
from hypothesis import given
from hypothesis import strategies as st
from recorded_session import (
    BARS,
    CONFIG_DIR,
    RecordedSession,
    release_tiny_model,
    session_settings,
    write_candles,
)
from typer.testing import CliRunner

from actors.charges import ChargeTable
from actors.complexity import MarketComplexityActor
from actors.messages import ACTIONS, Bar, Decision, ExecutionReport, MarketContext, PlaceOrder
from daemon.backtest import BacktestService, BarProgress, prepare
from daemon.backtest_result import BacktestResult, Ledger, max_drawdown_percent, sharpe_ratio
from daemon.cli import app
from daemon.errors import ConfigError, DataError, PartCrashed
from daemon.replay import Recording
from daemon.session_run import Options, Setting, _new_plan
from daemon.settings import load_settings

_MINUTES_5_NS = 300 * SECOND_NS


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Two days of candles, a tiny model with opinions, settings that let it trade."""
    folder = tmp_path_factory.mktemp("backtest")
    release_tiny_model(folder / "models")
    loaded = prepare([write_candles(folder)], [], config=CONFIG_DIR)
    return replace(loaded, settings=session_settings(folder))


@pytest.fixture(scope="module")
def progress(where: Setting) -> tuple[BacktestResult, list[BarProgress]]:
    """The result of one run, and all that was told on the way."""
    told: list[BarProgress] = []
    return BacktestService(where).run_alone(told.append), told


def until(where: Setting, bars: int) -> Setting:
    """Cut the candles after so many."""
    (market,) = where.markets
    end_ns = int(market.table.open_ns[bars])
    return replace(where, markets=[replace(market, table=market.table.between(0, end_ns))])


def test_a_backtest_decides_and_fills_as_the_paper_session_of_the_same_candles(
    recorded: RecordedSession, progress: tuple[BacktestResult, list[BarProgress]]
) -> None:
    recording = Recording(recorded.folder)
    messages = [envelope.message for envelope in recording.entries.values()]
    orders = {m.client_order_id: m for m in messages if isinstance(m, PlaceOrder)}
    paper_fills = [
        (m.event_ns, float(m.last_price), m.last_quantity, orders[m.client_order_id].decision_id)
        for m in messages
        if isinstance(m, ExecutionReport) and m.last_quantity
    ]
    result, told = progress

    assert [timeless(bar.decision) for bar in told] == [
        timeless(decision) for decision in recording.decisions().values()
    ]
    assert [
        (trade.event_ns, trade.price, trade.quantity, trade.decision_id) for trade in result.trades
    ] == paper_fills
    assert len(paper_fills) > 10  # else this would compare nothing with nothing
    assert result.total_trades == recorded.statistics.summary()["round_trips"]
    assert result.total_pnl == pytest.approx(recorded.statistics.summary()["realised_pnl"])


def timeless(decision: Decision | None) -> Decision:
    assert decision is not None
    return msgspec.structs.replace(decision, elapsed_us=0, budget_ms=0.0, waited_us=0, batch_size=0)


def test_two_backtests_of_the_same_candles_are_equal_to_the_last_byte(
    where: Setting, progress: tuple[BacktestResult, list[BarProgress]]
) -> None:
    again = BacktestService(where).run_alone()

    assert msgspec.json.encode(again) == msgspec.json.encode(progress[0])


def test_another_seed_draws_other_paths_and_another_result(
    where: Setting, progress: tuple[BacktestResult, list[BarProgress]]
) -> None:
    other = BacktestService(where, seed=2).run_alone()

    assert other.fingerprint != progress[0].fingerprint


def test_each_bar_is_told_once_with_its_decision_its_value_and_its_trades(
    progress: tuple[BacktestResult, list[BarProgress]],
) -> None:
    result, told = progress

    assert [bar.number for bar in told] == list(range(1, BARS + 1))
    assert {bar.total for bar in told} == {BARS}
    assert all(bar.decision and bar.decision.bar_close_ns == bar.bar.close_ns for bar in told)
    assert tuple(trade for bar in told for trade in bar.trades) == result.trades
    assert [bar.portfolio_value for bar in told] == [value for _, value in result.portfolio_values]


def test_the_money_adds_up(progress: tuple[BacktestResult, list[BarProgress]]) -> None:
    result, _ = progress

    assert result.final_capital == pytest.approx(result.initial_capital + result.total_pnl)
    assert result.total_reward == pytest.approx(result.total_pnl)
    assert result.charges == pytest.approx(result.total_trades * (25 + 35))
    by_prices = sum(
        (-1 if trade.action in ("BUY_LONG", "CLOSE_SHORT") else 1) * trade.price * trade.quantity
        for trade in result.trades
    )
    assert result.total_pnl == pytest.approx(by_prices - result.charges)


def at_statutory_charges(where: Setting, effective_from: str) -> BacktestResult:
    """Run with the shipped rates of options at NSE, as if they held from another day on."""
    execution = where.settings.execution
    (*_, rates) = load_settings(CONFIG_DIR, {}).execution.charge_table.rates["NSE"]["options"]
    moved = rates.model_copy(update={"effective_from": date.fromisoformat(effective_from)})
    fields = {
        "charges": "statutory",
        "charge_table": ChargeTable(rates={"NSE": {"options": (moved,)}}),
    }
    changed = where.settings.model_copy(update={"execution": execution.model_copy(update=fields)})
    return BacktestService(replace(where, settings=changed)).run_alone()


def test_a_backtest_pays_statutory_charges_on_every_order(where: Setting) -> None:
    result = at_statutory_charges(where, "2024-01-01")

    assert result.trades
    assert result.charges > result.total_trades * 2 * 20 * 1.18  # brokerage and its tax alone
    by_prices = sum(
        (-1 if trade.action in ("BUY_LONG", "CLOSE_SHORT") else 1) * trade.price * trade.quantity
        for trade in result.trades
    )
    assert result.total_pnl == pytest.approx(by_prices - result.charges)


def test_a_backtest_of_days_without_known_charges_makes_no_trade(where: Setting) -> None:
    assert at_statutory_charges(where, "2026-04-01").trades == ()


def test_what_is_open_when_the_data_ends_is_closed_at_the_last_price(where: Setting) -> None:
    told: list[BarProgress] = []
    bars = next(
        number
        for number in range(45, 75)
        if BacktestService(until(where, number)).run_alone(told.append).trades
        and told[-1].trades
        and told[-1].trades[-1].action in ("BUY_LONG", "SELL_SHORT")
    )
    told.clear()

    result = BacktestService(until(where, bars)).run_alone(told.append)

    last, close = result.trades[-1], float(told[-1].bar.close)
    assert last.position == 0
    assert last.action in ("CLOSE_LONG", "CLOSE_SHORT")
    assert result.open_positions == {}
    assert result.final_capital == pytest.approx(result.initial_capital + result.total_reward)
    worse = last.price - close if last.action == "CLOSE_SHORT" else close - last.price
    assert 0 < worse < 0.001 * close  # slippage and nothing else


def test_a_cancelled_backtest_ends_at_the_next_bar_with_nothing_open(where: Setting) -> None:
    service = BacktestService(where)

    def stop(progress: BarProgress) -> None:
        if progress.number == 60:
            service.cancel()

    result = service.run_alone(stop)

    assert result.stopped_by == "cancelled"
    assert result.bars == 60
    assert result.open_positions == {}


def test_an_actor_that_cannot_handle_a_message_ends_the_backtest(
    where: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: MarketComplexityActor, _message: Bar) -> Iterator[MarketContext]:
        raise ArithmeticError("no such number")

    monkeypatch.setattr(MarketComplexityActor, "handle", fail)

    with pytest.raises(PartCrashed, match=r"complexity could not handle the Bar .* no such number"):
        BacktestService(where).run_alone()


def test_without_a_valid_model_every_decision_is_hold_and_the_reason_is_told(
    where: Setting, tmp_path: Path
) -> None:
    nobody = replace(where, settings=session_settings(tmp_path))

    result = BacktestService(nobody).run_alone()

    assert result.decisions_by_action == {"HOLD": BARS}
    assert "manifest" in result.no_model_reason
    assert result.final_capital == result.initial_capital
    assert (result.sharpe_ratio, result.max_drawdown, result.win_rate) == (0.0, 0.0, 0.0)


def test_forecasts_of_complexity_are_scored_and_poor_ones_ask_for_a_review(tmp_path: Path) -> None:
    market = prepare([write_candles(tmp_path, days=15)], [], config=CONFIG_DIR)
    nobody = replace(market, settings=session_settings(tmp_path))

    result = BacktestService(nobody).run_alone()

    # Candles of pure chance: nothing in them tells the next hour, and the score has to say so.
    score = result.complexity_forecast["Nifty"]
    assert score["n"] > 200
    assert 0.35 < score["accuracy"] < 0.65
    assert sum(score["confusion"].values()) == sum(b["n"] for b in score["calibration"])
    assert {"balanced_accuracy", "brier", "ece", "skill", "baseline_time_of_day"} <= set(score)
    assert result.alerts["Poor forecasts"] == 1


def test_finer_candles_make_the_bars_that_are_asked_for(tmp_path: Path) -> None:
    coarse = prepare([write_candles(tmp_path)], [], config=CONFIG_DIR, timeframe="15")

    told: list[BarProgress] = []
    result = BacktestService(coarse).run_alone(told.append)

    assert result.timeframe == "15"
    assert result.bars == told[0].total == BARS // 3
    assert {bar.bar.close_ns - bar.bar.open_ns for bar in told} == {3 * _MINUTES_5_NS}


def test_days_capital_and_unusable_wishes(tmp_path: Path) -> None:
    path = write_candles(tmp_path)

    rich = prepare([path], [], config=CONFIG_DIR, capital=250_000)
    assert BacktestService(rich).run_alone().initial_capital == 250_000

    with pytest.raises(ConfigError, match=r"no bars of feed\.timeframe"):
        prepare([path], [], config=CONFIG_DIR, timeframe="3")
    with pytest.raises(ConfigError, match="initial_capital"):
        prepare([path], [], config=CONFIG_DIR, capital=-1)
    with pytest.raises(DataError, match=r"cannot be read|not found|no such file|does not exist"):
        prepare([tmp_path / "none.csv"], ["Nifty"], config=CONFIG_DIR)


def test_the_contract_form_has_epoch_seconds_and_action_codes(
    progress: tuple[BacktestResult, list[BarProgress]],
) -> None:
    result, _ = progress

    spelled = json.loads(json.dumps(result.contract()))

    first, trade = spelled["trades"][0], result.trades[0]
    assert first == {
        "timestamp": trade.event_ns // SECOND_NS,
        "action": ACTIONS.index(trade.action),
        "price": trade.price,
        "pnl": trade.pnl,
        "position": trade.position,
    }
    assert spelled["portfolio_values"][-1]["value"] == result.final_capital
    assert set(spelled["hrm_metrics"]) == {
        "avg_reasoning_depth",
        "computation_efficiency",
        "hierarchical_convergence",
    }
    assert all(0 <= spelled["hrm_metrics"][name] <= 1 for name in list(spelled["hrm_metrics"])[1:])


def test_the_command_prints_one_object_and_shows_progress_on_stderr(tmp_path: Path) -> None:
    arguments = ["backtest", "--data", str(write_candles(tmp_path)), "--json"]

    outcome = CliRunner().invoke(app, [*arguments, "--config", str(CONFIG_DIR)])

    assert outcome.exit_code == 0, outcome.stderr
    answer: dict[str, Any] = json.loads(outcome.stdout)
    assert answer["bars"] == BARS
    assert "100%" in outcome.stderr


def test_a_market_of_candles_alone_trades_an_index_itself(where: Setting) -> None:
    execution = where.settings.execution.model_copy(update={"trade_index_through": "options"})
    through_options = replace(
        where, settings=where.settings.model_copy(update={"execution": execution})
    )

    plans = {
        "backtest": BacktestService(through_options).plan,
        "paper": _new_plan(through_options, Options(None, False, 1, "simulated")),
        "fyers-sim": _new_plan(through_options, Options(None, False, 1, "fyers-sim")),
    }

    through = {
        name: plan.settings["execution"]["trade_index_through"] for name, plan in plans.items()
    }
    assert through == {"backtest": "index", "paper": "index", "fyers-sim": "options"}


def test_fills_told_together_are_two_trades_with_the_results_of_their_own() -> None:
    ledger = Ledger(100_000.0, None)
    first, second = an_order(75), an_order(150, client_order_id="order2")
    for message in (
        a_bar(),
        first,
        second,
        a_fill(first, "22000"),
        a_fill(second, "22010"),
        a_position(75, realised_pnl=Decimal(-25)),
        a_position(225, realised_pnl=Decimal(-50)),
        a_position(225, realised_pnl=Decimal(-50)),  # a stop that moved: no trade
    ):
        ledger.note(message)

    _, trades = ledger.close_bar(a_bar())

    assert [(trade.quantity, trade.price, trade.pnl, trade.position) for trade in trades] == [
        (75, 22000.0, -25.0, 75),
        (150, 22010.0, -25.0, 225),
    ]


@given(st.lists(st.floats(1.0, 1e9), min_size=1))
def test_a_drawdown_is_a_percentage_and_zero_for_a_value_that_only_rises(
    values: list[float],
) -> None:
    assert 0.0 <= max_drawdown_percent(values) < 100.0
    assert max_drawdown_percent(sorted(values)) == 0.0


def test_the_figures_of_a_curve_worked_out_by_hand() -> None:
    assert max_drawdown_percent([100.0, 120.0, 90.0, 130.0]) == 25.0
    # Returns 0.1 and -0.1 and 0.1: mean 1/30, sample deviation 0.11547.
    assert sharpe_ratio([100.0, 110.0, 99.0, 108.9]) == pytest.approx(
        (0.1 / 3) / 0.11547005 * math.sqrt(252), rel=1e-6
    )
    assert sharpe_ratio([100.0, 100.0, 100.0]) == 0.0
