"""The drill trader: often in, often out, the same again by the same seed."""

from builders import a_bar, a_context, a_policy_switch, a_position, outputs_of

from actors.drill import DrillTrader
from actors.messages import Decision

BARS = 200


def decisions(trader: DrillTrader, bars: int = BARS) -> list[Decision]:
    contexts = [a_context(a_bar(number=number)) for number in range(bars)]
    return [one for one in outputs_of(trader, *contexts) if isinstance(one, Decision)]


def test_one_decision_per_bar_and_the_same_again_by_the_same_seed() -> None:
    first, again, other = (decisions(DrillTrader(seed)) for seed in (1, 1, 2))

    assert len({one.id for one in first}) == BARS
    assert first == again
    assert [one.action for one in first] != [one.action for one in other]


def test_flat_it_enters_either_way_on_three_bars_of_four() -> None:
    actions = [one.action for one in decisions(DrillTrader(1))]

    assert set(actions) == {"BUY_LONG", "SELL_SHORT", "HOLD"}
    assert 0.6 < 1 - actions.count("HOLD") / BARS < 0.9


def test_with_a_position_it_only_leaves() -> None:
    trader = DrillTrader(1)

    outputs_of(trader, a_position(75))
    long = {one.action for one in decisions(trader)}
    outputs_of(trader, a_position(-75))
    short = {one.action for one in decisions(trader)}

    assert (long, short) == ({"CLOSE_LONG", "HOLD"}, {"CLOSE_SHORT", "HOLD"})


def test_it_obeys_a_policy_of_hold() -> None:
    trader = DrillTrader(1)
    outputs_of(trader, a_policy_switch("hold"))

    assert {one.action for one in decisions(trader)} == {"HOLD"}
