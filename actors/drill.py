"""Drill: decisions drawn by seed, which enter and leave often, in place of the model's.

For trying out everything behind a decision. What it earns means nothing.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from actors.base import Actor
from actors.messages import Action, Decision, MarketContext, PolicySwitch, Position

Input = MarketContext | Position | PolicySwitch

_ACTS: Final = 0.75  # share of bars on which something is done
_RANGE: Final = 1000  # a stop lies a few of this part of the price away


class DrillTrader(Actor[Input, Decision]):
    """Enter long or short when flat, leave when not, on three bars of four.

    It stands where reasoning stands and takes the same messages; a policy of HOLD is obeyed. The
    same seed and the same positions give the same decisions.
    """

    name = "reasoning"

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._net: dict[str, int] = {}  # instrument -> signed units
        self._is_holding = False

    def handle(self, message: Input) -> Iterator[Decision]:
        match message:
            case Position(instrument=instrument, net_quantity=net):
                self._net[instrument] = net
            case PolicySwitch(policy=policy):
                self._is_holding = policy == "hold"
            case MarketContext():
                yield self._decide(message)

    def _decide(self, context: MarketContext) -> Decision:
        bar = context.bar
        id_ = f"{bar.instrument}@{bar.close_ns}"
        return Decision(
            id=id_,
            instrument=bar.instrument,
            timeframe=bar.timeframe,
            action=self._action(id_, self._net.get(bar.instrument, 0)),
            size_fraction=0.1,
            confidence=1.0,
            policy="hold",  # no model had a part in it
            reference_price=bar.close,
            atr=bar.close / _RANGE,
            bar_close_ns=bar.close_ns,
            reason="drill: drawn by seed",
        )

    def _action(self, id_: str, net: int) -> Action:
        drawn = blake2b(f"{self._seed}|{id_}".encode(), digest_size=8).digest()
        share = int.from_bytes(drawn) / 2**64  # uniform in [0, 1)
        if self._is_holding or share >= _ACTS:
            return "HOLD"
        if net:
            return "CLOSE_LONG" if net > 0 else "CLOSE_SHORT"
        return "BUY_LONG" if share < _ACTS / 2 else "SELL_SHORT"
