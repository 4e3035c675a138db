"""What users ask of the daemon: requests onto the bus, answers back to who asked."""

import asyncio
import secrets
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from actors.desk import REFUSED
from actors.messages import (
    KillSwitch,
    ManualTrade,
    RequestAnswer,
    Side,
    StartSession,
    StopSession,
    TradingMode,
)
from backend.place import Place
from daemon.announcer import Announcer
from daemon.errors import BusError
from daemon.kill_switch import KillSwitchLatch, RedisLatchStore
from daemon.redis_bus import RedisBus

Request = StartSession | StopSession | ManualTrade


class NoAnswer(Exception):
    """The daemon did not answer a request; whether it acted on it is unknown."""


class DaemonLink:
    """Publish requests and wait for their answers, which the reader hands in."""

    def __init__(
        self, wall_ns: Callable[[], int], answer_within_s: float, *, not_for_real: str = ""
    ) -> None:
        """`not_for_real`: why no session or trade of real money is asked for; "": it may be."""
        self._wall_ns = wall_ns
        self._answer_within_s = answer_within_s
        self._not_for_real = not_for_real
        self._waiting: dict[str, asyncio.Future[RequestAnswer]] = {}

    def take(self, answer: RequestAnswer) -> None:
        """Hand an answer to who waits for it."""
        waiting = self._waiting.get(answer.request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def start(
        self,
        place: Place,
        user_id: str,
        instrument: str,
        timeframe: str,
        mode: TradingMode,
        option_strategy: str | None,
    ) -> RequestAnswer:
        """Ask for a session."""
        return await self._ask(
            place,
            StartSession(
                id=_new_id(),
                user_id=user_id,
                instrument=instrument,
                timeframe=timeframe,
                trading_mode=mode,
                option_strategy=option_strategy,
                at_ns=self._wall_ns(),
            ),
        )

    async def stop(self, place: Place, user_id: str) -> RequestAnswer:
        """Ask for the end of the user's session."""
        return await self._ask(
            place, StopSession(id=_new_id(), user_id=user_id, at_ns=self._wall_ns())
        )

    async def trade(
        self,
        place: Place,
        user_id: str,
        instrument: str,
        side: Side,
        lots: int,
        price: Decimal,
        mode: TradingMode,
        stop: Decimal | None,
        target: Decimal | None,
    ) -> RequestAnswer:
        """Ask for a manual entry."""
        return await self._ask(
            place,
            ManualTrade(
                id=_new_id(),
                user_id=user_id,
                instrument=instrument,
                side=side,
                lots=lots,
                reference_price=price,
                trading_mode=mode,
                at_ns=self._wall_ns(),
                stop_price=stop,
                target_price=target,
            ),
        )

    async def _ask(self, place: Place, request: Request) -> RequestAnswer:
        if place.mode == "REAL" and self._not_for_real and not isinstance(request, StopSession):
            return RequestAnswer(
                request_id=request.id,
                user_id=request.user_id,
                accepted=False,
                reason=self._not_for_real,
                answered_ns=self._wall_ns(),
                problem=REFUSED,
            )
        answered: asyncio.Future[RequestAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = answered
        bus = RedisBus(place.url, place.plan.prefix)
        announcer = Announcer(bus, "backend", [request.stream])
        try:
            (entry_id,) = await announcer.publish(request)
            try:
                async with asyncio.timeout(self._answer_within_s):
                    return await answered
            except TimeoutError:
                # A daemon that comes back must not act on what its user has given up.
                await bus.withdraw(request.stream, entry_id)
                raise
        except BusError as error:
            raise NoAnswer(str(error)) from error
        except TimeoutError as error:
            raise NoAnswer(
                f"the daemon gave no answer within {self._answer_within_s:g} s: look at the "
                "session before you ask again"
            ) from error
        finally:
            del self._waiting[request.id]
            await announcer.close()
            await bus.close()

    async def kill(self, place: Place, user_id: str, reason: str, *, flatten: bool) -> Any:
        """Engage the kill switch: stop file, key, message; return what came of each step."""
        bus = RedisBus(place.url, place.plan.prefix)
        announcer = Announcer(bus, "backend", [KillSwitch.stream])
        store = RedisLatchStore.connect(place.url)
        latch = KillSwitchLatch(
            place.state_dir, place.plan.prefix, self._wall_ns, store, announcer.publish
        )
        try:
            steps = await latch.engage(reason, user_id, flatten)
        finally:
            await announcer.close()
            await store.close()
            await bus.close()
        return {"engaged": latch.is_engaged(), "steps": [step._asdict() for step in steps]}


def _new_id() -> str:
    return secrets.token_hex(8)
