"""Take back what rests at the broker from outside, for a kill while the daemon is down."""

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


async def cancel_at_broker(plan: SessionPlan, state_dir: Path, clock: Clock) -> Step | None:
    """Cancel every resting order of the account; None for a session without a broker to ask.

    A daemon that runs owns the count of calls, and takes back its orders itself.
    """
    if plan.broker == "fyers":
        endpoints = Endpoints()
    elif plan.simulator:
        endpoints = simulated(plan.simulator)
    else:
        return None
    folder = state_dir / FOLDER
    try:
        with RateLedger(folder / LEDGER, clock) as ledger:
            async with asyncio.timeout(_LONGEST_S):
                cancelled = await _cancel_all(endpoints, folder, ledger, clock)
    except LedgerTaken:
        return Step(_NAME, True, "left to the daemon, which runs")
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
