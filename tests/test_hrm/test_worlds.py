import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from daemon.cli import app
from daemon.errors import ConfigError, DataError
from daemon.history import load_candles
from daemon.synth_command import synthesise
from hrm.features import checked_bars
from hrm.training.candles import check_quality, read_candles
from hrm.training.world_oracles import (
    POSITIONS,
    AlphaOracle,
    RegimeOracle,
    SequenceOracle,
    best_path,
    oracle_of,
    solve,
)
from hrm.training.world_scores import (
    FlatPolicy,
    LongPolicy,
    OraclePolicy,
    Policy,
    RidgePolicy,
    Score,
    bootstrap_interval,
    check_path,
    deflated_sharpe_ratio,
    evaluate,
    net_returns,
)
from hrm.training.worlds import (
    BAR_NS,
    WORLD_NAMES,
    DriftRegimes,
    FlippingSignal,
    HiddenAlpha,
    Null,
    SequentialRule,
    Shuffled,
    World,
    WorldCandles,
    generate,
    parameter_values,
    parameters_for,
    write_csv,
)

SEEDS = range(50, 58)
BARS = 6_000
EARNING = ("W1", "W2", "W3", "W4")


@lru_cache
def score_of(name: str, world: str) -> Score:
    """Score a policy on fresh draws, ridge after learning from another draw."""
    parameters = parameters_for(world)
    policies: dict[str, Policy] = {
        "flat": FlatPolicy(),
        "long": LongPolicy(),
        "oracle": OraclePolicy(parameters),
    }
    if name == "ridge":
        learned_from = generate(world, 20_000, 1).candles
        policies["ridge"] = RidgePolicy.fit(learned_from, parameters.cost)
    return evaluate(policies[name], parameters, SEEDS, BARS)


def expected_returns(world: World, seed: int) -> tuple[WorldCandles, np.ndarray]:
    """Draw a world, and say what each bar's return was expected to be by who knows the truth."""
    drawn = generate(world.name, BARS, seed, world)
    hidden, returns = drawn.hidden, drawn.candles.returns
    before = np.concatenate([[0.0], returns[:-1]])
    match world:
        case HiddenAlpha():
            return drawn.candles, hidden["alpha"]
        case DriftRegimes():
            return drawn.candles, world.drift * hidden["regime"]
        case FlippingSignal():
            return drawn.candles, world.persistence * hidden["regime"] * before
        case SequentialRule():
            direction = np.concatenate([[0.0], hidden["direction"][:-1]])
            return drawn.candles, world.drift * direction
        case _:
            return drawn.candles, np.zeros(BARS)


# Candles


@pytest.mark.parametrize("world", WORLD_NAMES)
def test_the_same_seed_gives_the_same_candles(world: str) -> None:
    first, second, other = (generate(world, 500, seed).candles for seed in (3, 3, 4))

    assert all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("open", "high", "low", "close", "volume", "open_ns")
    )
    assert not np.array_equal(first.close, other.close)


@pytest.mark.parametrize("world", WORLD_NAMES)
def test_candles_are_possible_and_without_a_gap_in_price(world: str) -> None:
    candles = generate(world, 3_000, 1).candles

    checked_bars(
        candles.open,
        candles.high,
        candles.low,
        candles.close,
        candles.volume,
        candles.open_ns + BAR_NS,
    )

    assert np.array_equal(candles.open[1:], candles.close[:-1])


def test_the_clock_runs_from_monday_to_friday() -> None:
    candles = generate("W0", 4_000, 1).candles

    days = candles.open_ns // 86_400_000_000_000
    weekdays = (days + 3) % 7  # the epoch began on a Thursday
    assert set(weekdays.tolist()) == {0, 1, 2, 3, 4}
    assert sorted(set(np.diff(candles.open_ns).tolist())) == [BAR_NS, BAR_NS + 2 * 86_400 * 10**9]


@pytest.mark.parametrize("world", WORLD_NAMES)
def test_the_daemon_reads_the_file_without_a_repair(world: str, tmp_path: Path) -> None:
    drawn = generate(world, 2_000, 1).candles
    path = tmp_path / f"{world}_5.csv"

    write_csv(path, drawn)
    table = load_candles(path, strict=True)

    assert (table.symbol, table.timeframe_minutes) == (world, 5)
    assert not table.quality.repairs
    assert not table.quality.notes
    for name in ("open_ns", "open", "high", "low", "close", "volume"):
        assert np.array_equal(getattr(table, name), getattr(drawn, name))


def test_the_trainer_reads_the_file_and_finds_it_fit(tmp_path: Path) -> None:
    path = tmp_path / "W2_5.csv"
    write_csv(path, generate("W2", 2_000, 1).candles)

    candles = read_candles(path)
    check_quality(candles)

    assert (candles.instrument, candles.timeframe, len(candles)) == ("W2", "5", 2_000)


def test_garch_returns_cluster_in_size_and_not_in_sign() -> None:
    returns = generate("W0", 40_000, 1).candles.returns

    size, sign = np.square(returns), np.sign(returns)
    assert np.corrcoef(size[1:], size[:-1])[0, 1] > 0.05
    assert abs(np.corrcoef(sign[1:], sign[:-1])[0, 1]) < 0.015


@pytest.mark.parametrize("base", ["W1", "W2", "W3"])
def test_shuffling_cuts_every_tie_between_bars(base: str) -> None:
    plain = generate(base, 30_000, 2).candles.returns
    shuffled = generate("W5", 30_000, 2, Shuffled(base=base)).candles.returns

    def dependence(returns: np.ndarray) -> float:
        """Correlate, over two lags, returns and the products that a flipping sign leaves."""
        products = returns[1:] * returns[:-1]
        lagged = [(returns[k:], returns[:-k]) for k in (1, 2)] + [(products[2:], products[:-2])]
        return max(abs(float(np.corrcoef(*pair)[0, 1])) for pair in lagged)

    assert dependence(plain) > 0.06
    assert dependence(shuffled) < 0.02


@pytest.mark.parametrize(
    ("world", "changes", "claim"),
    [
        ("W9", {}, "choose one of W0, W1"),
        ("W0", {"garch": 0.95}, "arch \\+ garch must be below 1"),
        ("W1", {"alpha_bps": 0}, "alpha_bps must be above 0, was 0"),
        ("W1", {"half_life_bars": -1}, "half_life_bars must be above 0"),
        ("W2", {"drift_bps": "nan"}, "drift_bps of W2 must be finite"),
        ("W2", {"drift_bps": "much"}, "drift_bps of W2 must be a number, was 'much'"),
        ("W2", {"drift": 1}, "W2 has no parameter 'drift': it has cost_bps"),
        ("W2", {"stay_bars": 1}, "stay_bars must be above 2"),
        ("W2", {"cost_bps": -1}, "cost_bps must be 0 or more"),
        ("W3", {"persistence": 1.0}, "persistence must be in \\(0, 1\\), was 1.0"),
        ("W4", {"flags": 0}, "flags must be 1 or more"),
        ("W4", {"event_share": 0}, "event_share must be in \\(0, 1\\]"),
        ("W5", {"base": "W4"}, "base must be W1, W2 or W3"),
    ],
)
def test_a_world_that_cannot_be_is_refused(
    world: str, changes: dict[str, object], claim: str
) -> None:
    with pytest.raises(ValueError, match=claim):
        parameters_for(world, **changes)


def test_a_history_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="bars must be at least 2, was 1"):
        generate("W1", 1, 1)
    with pytest.raises(ValueError, match="seed must not be negative"):
        generate("W1", 10, -1)
    with pytest.raises(ValueError, match="those of W1, not of W2"):
        generate("W2", 10, 1, HiddenAlpha())
    with pytest.raises(ValueError, match=r"the price wandered to .* draw fewer bars"):
        generate("W1", 5_000, 1, HiddenAlpha(alpha_bps=500.0))


# Oracles


@pytest.mark.parametrize("world", EARNING)
def test_the_oracles_value_is_what_its_policy_earns(world: str) -> None:
    parameters = parameters_for(world)
    oracle = oracle_of(parameters)
    earned = []
    for seed in range(80, 96):
        # Expected instead of drawn returns: the same mean, with far less noise.
        candles, expected = expected_returns(parameters, seed)
        path = oracle.positions(candles)
        earned.append(float(net_returns(path, expected, parameters.cost).mean()))

    mean = float(np.mean(earned))
    error = float(np.std(earned, ddof=1)) / len(earned) ** 0.5
    assert abs(mean - oracle.value) < 2.5 * error + 0.003 * oracle.value
    assert 2.5 * error < 0.08 * oracle.value  # else the line above says nothing


@pytest.mark.parametrize("world", EARNING)
def test_drawn_returns_agree_with_the_oracles_value_within_the_interval(world: str) -> None:
    score = score_of("oracle", world)

    low, high = score.value_bps_ci95
    slack = 0.25 * (high - low)  # a 95 % interval misses one time in twenty
    assert low - slack <= score.oracle_bps <= high + slack
    assert score.oracle_bps > 1.5
    assert score.edges == len(SEEDS)


@pytest.mark.parametrize(
    ("world", "least", "most"),
    [("W1", 0.85, 1.05), ("W2", 0.70, 1.0), ("W3", 0.1, 0.5), ("W4", 0.0, 0.3)],
)
def test_ridge_reaches_only_the_part_that_is_linear(world: str, least: float, most: float) -> None:
    ridge, oracle = score_of("ridge", world), score_of("oracle", world)

    assert least < ridge.value_bps / oracle.value_bps < most
    assert oracle.value_bps_ci95[0] > 0.0 == score_of("flat", world).value_bps


@pytest.mark.parametrize("world", [Null(), Shuffled(), Shuffled(base="W3")])
def test_where_nothing_can_be_known_the_oracle_stays_flat(world: World) -> None:
    oracle = oracle_of(world)

    path = oracle.positions(generate(world.name, 300, 1, world).candles)

    assert oracle.value == 0.0
    assert not path.any()


@pytest.mark.parametrize("world", ["W0", "W5"])
def test_ridge_finds_nothing_where_there_is_nothing(world: str) -> None:
    score = score_of("ridge", world)

    assert score.ratio is None
    assert score.value_bps_ci95[0] < 0.05
    assert abs(score.value_bps) < 0.2


@pytest.mark.parametrize("world", WORLD_NAMES)
@settings(max_examples=5, deadline=None)
@given(seen=st.integers(min_value=1, max_value=400), seed=st.integers(0, 50))
def test_an_oracle_never_looks_ahead(world: str, seen: int, seed: int) -> None:
    candles = generate(world, 400, seed).candles
    oracle = oracle_of(parameters_for(world))

    whole, part = oracle.positions(candles), oracle.positions(candles.first(seen))

    assert np.array_equal(whole[:seen], part)


def test_ridge_stays_flat_where_nothing_has_paid() -> None:
    candles = generate("W2", 4_000, 1).candles

    ridge = RidgePolicy.fit(candles, cost=0.05)

    assert not ridge.positions([candles])[0].any()


def test_ridge_never_looks_ahead() -> None:
    candles = generate("W2", 8_000, 1).candles
    ridge = RidgePolicy.fit(candles, 2e-4)

    (whole,), (part,) = ridge.positions([candles]), ridge.positions([candles.first(4_000)])

    assert part.any()
    assert np.array_equal(whole[:4_000], part)


@pytest.mark.parametrize(
    "world",
    [DriftRegimes(stay_bars=30.0), FlippingSignal(stay_bars=30.0)],  # short: many regimes to count
)
def test_the_chance_of_a_regime_is_a_calibrated_probability(
    world: DriftRegimes | FlippingSignal,
) -> None:
    oracle = oracle_of(world)
    assert isinstance(oracle, RegimeOracle)
    drawn = generate(world.name, 30_000, 1, world)

    chance = oracle.chance_up(drawn.candles)[:-1]

    is_up = drawn.hidden["regime"][1:] > 0
    assert np.all((chance > 0.0) & (chance < 1.0))
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (chance >= low) & (chance < low + 0.2)
        assert abs(float(is_up[inside].mean() - chance[inside].mean())) < 0.05


def test_a_regime_filter_follows_bayes_rule() -> None:
    world = DriftRegimes(drift_bps=4.0, stay_bars=20.0)
    oracle = oracle_of(world)
    assert isinstance(oracle, RegimeOracle)
    candles = generate("W2", 50, 3, world).candles

    chance = oracle.chance_up(candles)

    up = 0.5
    for bar, observed in enumerate(candles.returns.tolist()):
        likelihoods = [
            np.exp(-0.5 * ((observed - sign * 4e-4) / 1e-3) ** 2) for sign in (1.0, -1.0)
        ]
        joint = (up * likelihoods[0], (1.0 - up) * likelihoods[1])
        seen = joint[0] / sum(joint)
        up = seen * 0.95 + (1.0 - seen) * 0.05
        assert chance[bar] == pytest.approx(up, abs=1e-9)


def test_the_kalman_forecast_is_unbiased_and_leaves_no_pattern() -> None:
    world = HiddenAlpha()
    oracle = oracle_of(world)
    assert isinstance(oracle, AlphaOracle)
    candles = generate("W1", 40_000, 1).candles

    forecast = oracle.filtered(candles)[:-1, 0]

    error = candles.returns[1:] - forecast
    slope = float(forecast @ candles.returns[1:] / (forecast @ forecast))
    assert slope == pytest.approx(1.0, abs=0.05)
    assert abs(float(np.corrcoef(error[1:], error[:-1])[0, 1])) < 0.015


def test_the_rule_of_w4_is_read_off_the_shadows_without_an_error() -> None:
    world = SequentialRule(flags=7)
    oracle = oracle_of(world)
    assert isinstance(oracle, SequenceOracle)
    drawn = generate("W4", 10_000, 1, world)

    known = oracle.filtered(drawn.candles)

    assert np.array_equal(known[:, 0], drawn.hidden["direction"])
    assert np.array_equal(known[:, 1], drawn.hidden["depth"])
    assert drawn.hidden["depth"].max() == 7


def test_before_the_first_reset_the_oracle_of_w4_waits() -> None:
    drawn = generate("W4", 2_000, 1)
    events = drawn.hidden["event"]
    first = next(bar for bar in range(1, 2_000) if events[bar] == 1)  # begin within an episode
    late = WorldCandles(
        **{name: getattr(drawn.candles, name)[first:] for name in ("open", "high", "low", "close")},
        volume=drawn.candles.volume[first:],
        open_ns=drawn.candles.open_ns[first:],
    )

    path = oracle_of(drawn.parameters).positions(late)

    until = next(bar for bar in range(first, 2_000) if events[bar] > 1) - first
    assert not path[:until].any()
    assert path.any()


def test_without_costs_the_best_is_the_mean_size_of_the_forecast() -> None:
    rule = parameters_for("W4", cost_bps=0.0, event_share=0.2)
    transition = np.full((4, 4), 0.25)
    move = np.array([-3.0, -1.0, 1.0, 3.0])

    plan = solve(transition, move, 0.0)

    # From one side to the other the way leads over flat, so that a turn costs a bar.
    assert 1.0 < plan.value < 2.0
    assert solve(np.eye(1), np.array([2.0]), 1.0).value == pytest.approx(2.0)
    assert oracle_of(rule).value > oracle_of(replace(rule, cost_bps=1.0)).value


def test_a_dynamic_programme_agrees_with_trying_every_policy() -> None:
    transition = np.array([[0.9, 0.1], [0.3, 0.7]])
    move, cost = np.array([-1.0, 2.0]), 0.8
    choices = {-1: (-1, 0), 0: (-1, 0, 1), 1: (0, 1)}
    pairs = [(state, held) for state in (0, 1) for held in POSITIONS]
    best = -np.inf
    options = np.meshgrid(*[range(len(choices[held])) for _, held in pairs], indexing="ij")
    for picks in np.stack([option.ravel() for option in options], axis=1):
        chain = np.zeros((6, 6))
        reward = np.zeros(6)
        for here, ((state, held), pick) in enumerate(zip(pairs, picks, strict=True)):
            taken = choices[held][pick]
            reward[here] = taken * move[state] - cost * abs(taken - held)
            for following in (0, 1):
                chain[here, pairs.index((following, taken))] = transition[state, following]
        lazy = 0.5 * (np.eye(6) + chain)  # the same long-run shares, without periods
        shares = np.linalg.matrix_power(lazy, 2_000)
        best = max(best, float((shares @ reward).max()))

    assert solve(transition, move, cost).value == pytest.approx(best, abs=1e-3)


def test_a_programme_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row of the transition matrix must sum to 1"):
        solve(np.full((2, 2), 0.4), np.ones(2), 0.0)
    with pytest.raises(ValueError, match="no best policy found"):
        solve(np.eye(2), np.array([1.0, 2.0]), 0.0)


def test_a_path_stays_when_nothing_is_gained() -> None:
    worth = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [2.0, 1.0, 1.0], [2.0, 1.0, 0.0]])

    path = best_path(worth, 1.0)

    assert path.tolist() == [0, 0, 0, 0]
    assert best_path(worth, 0.5).tolist() == [1, 1, 1, 0]


# Scores


class Fixed:
    """Give the same path in every market."""

    def __init__(self, path: Sequence[int]) -> None:
        self._path = np.array(path, dtype=np.int64)

    def positions(self, markets: Sequence[WorldCandles]) -> list[np.ndarray]:
        return [self._path for _ in markets]


def test_a_position_earns_the_next_bar_and_pays_for_every_change() -> None:
    returns = np.array([0.5, 0.1, -0.2, 0.4])

    net = net_returns(np.array([1, 1, 0, -1]), returns, 0.01)

    assert net.tolist() == pytest.approx([0.1 - 0.01, -0.2, -0.01])


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        ([0, 1, -1, 0], "position -1 after 1 at bar 2"),
        ([0, 0, 0, 2], "position 2 after 0 at bar 3"),
        ([0, 0, 0], "a position for each of 4 bars, gave \\(3,\\)"),
    ],
)
def test_a_path_that_no_actions_lead_to_is_refused(path: list[int], claim: str) -> None:
    with pytest.raises(ValueError, match=claim):
        evaluate(Fixed(path), Null(), [1], 4)
    check_path(np.array([1, 0, -1, -1]), 4)


def test_a_score_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        evaluate(FlatPolicy(), Null(), [], 10)


def test_a_flat_policy_scores_nothing_at_all() -> None:
    score = score_of("flat", "W2").as_dict()

    assert score["value_bps"] == 0.0
    assert score["ratio"] == 0.0
    assert score["changes_per_bar"] == 0.0
    assert score["edges"] == 0


def test_trading_every_bar_of_the_null_world_costs_what_it_costs() -> None:
    path = [0, 1] * 2_000

    score = evaluate(Fixed(path), Null(), [1, 2, 3], 4_000)

    low, high = score.value_bps_ci95
    assert low < -2.0 < high  # a cost of 2 bps at each change
    assert score.changes_per_bar == pytest.approx(1.0, abs=1e-3)
    assert score.edges == 0


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        noise = generator.standard_normal(6_000)
        series = np.convolve(noise, np.ones(20) / 20.0, mode="valid")  # neighbours depend
        low, high = bootstrap_interval([series[:3_000], series[3_000:]])
        covered += low < 0.0 < high

    assert covered >= 49


def test_a_deflated_ratio_asks_more_of_the_best_of_many() -> None:
    generator = np.random.default_rng(2)
    net = 0.02 + generator.standard_normal(10_000)

    alone, of_many = deflated_sharpe_ratio(net), deflated_sharpe_ratio(net, trials=100)

    assert alone > 0.95 > of_many
    assert deflated_sharpe_ratio(np.zeros(100)) == 0.0
    assert deflated_sharpe_ratio(-net) < 0.05
    with pytest.raises(ValueError, match="trials must be 1 or more, was 0"):
        deflated_sharpe_ratio(net, trials=0)


# The command


def test_synth_writes_a_file_and_names_the_best_value(tmp_path: Path) -> None:
    out = tmp_path / "W2_5.csv"
    arguments = ["synth", "--world", "W2", "--bars", "500", "--seed", "7", "--out", str(out)]

    result = CliRunner().invoke(app, [*arguments, "--set", "drift_bps=4", "--json"])

    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["world"], answer["bars"], answer["seed"]) == ("W2", 500, 7)
    assert answer["parameters"] == parameter_values(DriftRegimes(drift_bps=4.0))
    assert answer["cost_bps"] == 2.0
    best = oracle_of(DriftRegimes(drift_bps=4.0)).value
    assert answer["oracle_value"] == pytest.approx(1e4 * best, abs=1e-5)
    assert load_candles(out).sha256 == answer["sha256"]
    assert out.read_text().splitlines()[0] == ",datetime,open,high,low,close,volume"


def test_synth_without_json_prints_a_line_for_each_fact(tmp_path: Path) -> None:
    arguments = ["synth", "--world", "W0", "--bars", "50", "--out", str(tmp_path / "W0_5.csv")]

    result = CliRunner().invoke(app, arguments)

    assert "oracle_value: 0.0" in result.stdout.splitlines()


def test_synth_says_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "x_5.csv"

    with pytest.raises(ConfigError, match="no world 'W7'"):
        synthesise("W7", 100, 1, {}, out)
    with pytest.raises(DataError, match=r"cannot be written .* give --out a folder that exists"):
        synthesise("W0", 100, 1, {}, tmp_path / "absent" / "x_5.csv")
    result = CliRunner().invoke(
        app, ["synth", "--world", "W1", "--out", str(out), "--set", "alpha_bps"]
    )
    assert isinstance(result.exception, ConfigError)
    assert "--set needs name=value" in str(result.exception)
    assert not out.exists()


def test_the_command_line_does_without_torch() -> None:
    code = "import sys, daemon.cli; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
