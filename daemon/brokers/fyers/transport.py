"""How a call reaches Fyers' REST interface: by our own client, or by another one (sdk.py)."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import aiohttp

from daemon.errors import BrokerUnavailable


class Call(NamedTuple):
    """One call. authorization: what the header of that name says; body: sent as JSON."""

    method: str
    url: str
    authorization: str
    query: Mapping[str, str] | None = None
    body: Any = None

    def __str__(self) -> str:
        """Return what may stand in a log: neither the token nor what is sent."""
        return f"{self.method} {self.url}"


class Answer(NamedTuple):
    """What came back, whatever it says: HTTP status and text."""

    status: int
    text: str


class Transport(Protocol):
    """Make a call once, without judging the answer."""

    async def send(self, call: Call) -> Answer:
        """Return the whole answer; BrokerUnavailable where none came.

        The caller may give up at any time; whether the call then had an effect is not known.
        """
        ...


class HttpTransport:
    """Our own client."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def send(self, call: Call) -> Answer:
        """Return the whole answer; BrokerUnavailable where none came."""
        headers = {"Authorization": call.authorization, "version": "3"}
        try:
            async with self._http.request(
                call.method, call.url, params=call.query, json=call.body, headers=headers
            ) as response:
                # An error page of whatever stands before the broker need not be text at all.
                return Answer(response.status, await response.text(errors="replace"))
        except (aiohttp.ClientError, OSError) as error:
            # The text of an aiohttp error may hold the request: name its kind alone.
            raise BrokerUnavailable(f"{call}: {type(error).__name__}") from None
