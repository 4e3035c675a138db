"""An index traded through bought options: sockets, REST, option chains and fills, then a replay."""

from pathlib import Path

import pytest
from command_line import INSTRUMENT, a_sandbox, write_candles

from actors.messages import Decision, OptionChain, OrderIntent, PlaceOrder, Position
from daemon.replay import Recording

pytestmark = pytest.mark.integration

BARS = 45


def test_an_index_is_traded_through_options_and_replays_identically(tiny_models: Path) -> None:
    with a_sandbox() as sandbox:
        sandbox.trade_with(tiny_models)
        sandbox.set("execution.trade_index_through", "options")
        candles = write_candles(sandbox.folder / f"{INSTRUMENT}_1.csv", BARS)
        outcome = sandbox.run("demo", "--data", candles, "--json")
        assert outcome.code == 0, outcome.stderr
        answer = outcome.answer
        replay = sandbox.run("replay", answer["recording"], "--json")
        messages = [
            envelope.message for envelope in Recording(Path(answer["recording"])).entries.values()
        ]

    assert (answer["broker"], answer["lost"], answer["drained"]) == ("fyers-sim", 0, True)
    assert (replay.code, replay.answer["identical"]) == (0, True)
    assert answer["round_trips"] >= 1
    actions = {one.id: one.action for one in messages if isinstance(one, Decision)}
    entries = [one for one in messages if isinstance(one, OrderIntent) and one.contract]
    assert {intent.underlying for intent in entries} == {INSTRUMENT}
    for intent in entries:
        assert intent.contract is not None
        is_long = actions[intent.decision_id] == "BUY_LONG"
        assert intent.contract.kind == ("CE" if is_long else "PE")
    orders = [one for one in messages if isinstance(one, PlaceOrder)]
    assert {order.side for order in orders if order.purpose == "entry"} == {"buy"}
    assert all(order.instrument.startswith("NSE:NIFTY") for order in orders)
    assert all(order.quantity % 65 == 0 < order.quantity < 1800 for order in orders)
    assert {one.subject for one in messages if isinstance(one, Position)} == {INSTRUMENT}
    assert any(isinstance(one, OptionChain) for one in messages)
