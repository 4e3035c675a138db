"""Alert teller: lets parts that cannot wait put alerts on the bus."""

import asyncio

from actors.messages import Alert
from daemon.errors import BusError
from daemon.logs import get_logger
from daemon.venue import Announce

_RETRY_S = 1.0


class AlertTeller:
    """Take alerts at once and announce them in order, again until the bus has them."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._waiting: asyncio.Queue[Alert] = asyncio.Queue()

    def tell(self, alert: Alert) -> None:
        """Take an alert; `keep_telling` puts it on the bus."""
        self._waiting.put_nowait(alert)

    async def keep_telling(self) -> None:
        """Announce what was taken; never returns."""
        while True:
            alert = await self._waiting.get()
            try:
                await self._announce(alert)
            except BusError as error:
                get_logger().error("alert not sent", text=alert.text, reason=str(error))
                self._waiting.put_nowait(alert)
                await asyncio.sleep(_RETRY_S)
