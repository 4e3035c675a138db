"""Take back what rests at the broker from outside, for a kill while no daemon does it."""

import asyncio
from pathlib import Path
from random import Random
from typing import Final

import aiohttp

from actors.messages import Alert, PlaceOrder
from daemon.brokers.fyers.account import FyersAccount
from daemon.brokers.fyers.ledger import LedgerTaken, RateLedger
from daemon.brokers.fyers.login import TokenStore
from daemon.brokers.fyers.rest import Endpoints, simulated
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.clock import Clock
from daemon.errors import BrokerError, ConfigError
from daemon.fyers_venue import FOLDER, LEDGER
from daemon.kill_switch import Step
from daemon.plan import SessionPlan

_LONGEST_S: Final = 15.0
_NAME: Final = "broker"
_OWN_LEDGER: Final = "calls_of_kill"
"""Counts the calls of a kill while a daemon that does not answer has the count of the account: a
call per resting order, within the spare that its budget leaves of the broker's limits."""


async def cancel_at_broker(
    plan: SessionPlan, state_dir: Path, clock: Clock, *, is_daemon_told: bool
) -> Step | None:
    """Cancel every resting order of the account; None for a session without a broker to ask.

    A daemon that runs owns the count of calls. One that has been told and gives signs of life
    (`is_daemon_told`) takes back its orders itself; for any other it is done here.
    """
    if plan.broker == "fyers":
        endpoints = Endpoints()
    elif plan.simulator:
        endpoints = simulated(plan.simulator)
    else:
        return None
    folder = state_dir / FOLDER
    try:
        done = await _counted_in(LEDGER, endpoints, folder, clock)
    except LedgerTaken:
        if is_daemon_told:
            return Step(_NAME, True, "left to the daemon, which runs")
        try:
            done = await _counted_in(_OWN_LEDGER, endpoints, folder, clock)
        except LedgerTaken:
            return Step(_NAME, False, "another kill is at it: see to it that it ends well")
        note = "the daemon runs, but was not told or gives no sign of life: look at status"
        return done._replace(detail=f"{done.detail}; {note}")
    return done


async def _counted_in(name: str, endpoints: Endpoints, folder: Path, clock: Clock) -> Step:
    """Cancel with the calls that one ledger counts; LedgerTaken if another process has it."""
    try:
        with RateLedger(folder / name, clock) as ledger:
            async with asyncio.timeout(_LONGEST_S):
                cancelled = await _cancel_all(endpoints, folder, ledger, clock)
    except LedgerTaken:
        raise
    except (BrokerError, ConfigError, OSError) as error:  # a timeout is an OSError
        text = str(error) or f"no answer within {_LONGEST_S:g} s"
        return Step(_NAME, False, f"{text}; cancel what rests in the broker's own app")
    return Step(_NAME, True, f"cancelled {', '.join(cancelled) or 'nothing: no order rests'}")


async def _cancel_all(
    endpoints: Endpoints, folder: Path, ledger: RateLedger, clock: Clock
) -> list[str]:
    async def forgotten(_tag: str) -> PlaceOrder | None:
        return None

    def unheard(_alert: Alert) -> None:
        """Nobody is there to hear it."""

    store = TokenStore(folder)
    keeper = TokenKeeper(lambda: store.load(clock.now_ns()), None, clock, on_alert=unheard)
    await keeper.renew()
    async with aiohttp.ClientSession() as http:
        account = FyersAccount(
            http,
            endpoints,
            keeper,
            ledger,
            {},
            is_open=lambda _: True,
            recall=forgotten,
            clock=clock,
            market_clock=clock,
            random=Random(),
            on_alert=unheard,
        )
        return await account.broker.cancel_all()
