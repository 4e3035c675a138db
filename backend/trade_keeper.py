"""Writes closed trades to their files off the event loop: what is shown waits for no disk."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from backend.place import Place
from backend.projection import Trade
from daemon.logs import get_logger

_RETRY_S = 10.0
Write = Callable[[Place, tuple[Trade, ...]], None]


class TradeKeeper:
    """Hand each session's trades to `write` in a thread; what fails is logged and tried again."""

    def __init__(self, write: Write, retry_s: float = _RETRY_S) -> None:
        self._write = write
        self._retry_s = retry_s
        self._waiting: dict[str, tuple[Place, tuple[Trade, ...]]] = {}  # by session
        self._has_news = asyncio.Event()
        self._is_closing = False
        self._last_problem = ""
        self._log = get_logger(part="trades")

    def note(self, place: Place, trades: Iterable[Trade]) -> None:
        """Have a session's trades written, all that it has so far; never waits."""
        self._waiting[place.plan.session] = (place, tuple(trades))
        self._has_news.set()

    def close(self) -> None:
        """Have `run` write what waits, once, and return."""
        self._is_closing = True
        self._has_news.set()

    async def run(self) -> None:
        """Write what is noted until closed."""
        self._has_news = asyncio.Event()
        while True:
            is_last = self._is_closing
            self._has_news.clear()
            is_written = await self._write_waiting()
            if is_last:
                self._is_closing = False
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(None if is_written else self._retry_s):
                    await self._has_news.wait()

    async def _write_waiting(self) -> bool:
        """Write each session once; tell whether all went well."""
        is_written = True
        for session, noted in tuple(self._waiting.items()):
            try:
                await asyncio.to_thread(self._write, *noted)
            except Exception as error:  # noqa: BLE001 - whatever it was, it must be tried again
                is_written = False
                if str(error) != self._last_problem:
                    self._log.exception("trades not written", session=session)
                self._last_problem = str(error)
            else:
                self._last_problem = ""
                if self._waiting[session] is noted:
                    del self._waiting[session]
        return is_written
