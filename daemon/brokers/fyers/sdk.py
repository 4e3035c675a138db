"""The official SDK as another transport of REST calls: `broker.transport: sdk`.

The SDK makes the request; what it makes of the answer is not used, since it hides the HTTP status
and turns whatever goes wrong into one text. The answer is taken where its `requests` session hands
it out, and judged as any other. docs/adr/0063-sdk-as-transport.md says why its sockets stay out.
"""

import asyncio
import importlib
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import aiohttp

from daemon.brokers.fyers.transport import Answer, Call, HttpTransport, Transport
from daemon.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from requests import Response

    from daemon.brokers.fyers.rest import Endpoints

TransportName = Literal["own", "sdk"]

_THREADS: Final = 4  # a call that hangs must not keep a cancel waiting
_LOGGERS: Final = ("FyersAPI", "FyersAPIRequest")
_TRADING: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/profile"): "get_profile",
    ("GET", "/orders"): "orderbook",
    ("GET", "/tradebook"): "tradebook",
    ("GET", "/positions"): "positions",
    ("POST", "/orders/sync"): "place_order",
    ("PATCH", "/orders/sync"): "modify_order",
    ("DELETE", "/orders/sync"): "cancel_order",
}
_DATA: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/history"): "history",
    ("GET", "/options-chain-v3"): "optionchain",
}
"""The SDK's method for each call; what it has none for (symbol tokens, public files) is ours."""


class SdkTransport:
    """Make calls with the unmodified `fyers-apiv3`, in threads of its own. A context manager.

    One per process: the SDK keeps the broker's addresses in a class. ConfigError where it is not
    installed.
    """

    def __init__(self, endpoints: "Endpoints", otherwise: Transport, answer_s: float) -> None:
        """otherwise: makes the calls the SDK knows nothing of; answer_s: longest silence."""
        self._sdk = _imported()
        self._sdk.Config.API, self._sdk.Config.DATA_API = endpoints.api, endpoints.data
        _silent_model()  # here, and not first in one of the threads
        self._methods = {
            (method, base + path): name
            for base, names in ((endpoints.api, _TRADING), (endpoints.data, _DATA))
            for (method, path), name in names.items()
        }
        self._otherwise = otherwise
        self._answer_s = answer_s
        self._here = threading.local()  # each thread has a model, and the answer that came last
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fyers-sdk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Who still waits for an answer gives up by itself, after one silence more.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, call: Call) -> Answer:
        """Return the whole answer; BrokerUnavailable where none came."""
        name = self._methods.get((call.method, call.url))
        if name is None:
            return await self._otherwise.send(call)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, name, call)

    def _call(self, name: str, call: Call) -> Answer:
        model = self._model()
        model.header = call.authorization
        self._here.answer = None
        method: Callable[..., Any] = getattr(model, name)
        sent = call.query if call.body is None else call.body
        method() if sent is None else method(sent)
        answer: Answer | None = self._here.answer
        if answer is None:
            raise BrokerUnavailable(f"{call}: the SDK got no answer")
        return answer

    def _model(self) -> Any:
        """Return this thread's model: the SDK's session is not to be shared."""
        if not hasattr(self._here, "model"):
            model = copy(_silent_model())
            model.service = self._sdk.FyersServiceSync(model.api_logger, model.request_logger)
            session = model.service.session
            session.trust_env = False  # no proxy, and no .netrc in place of the token
            session.hooks["response"].append(self._keep)
            for adapter in session.adapters.values():
                adapter.send = _impatient(adapter.send, self._answer_s)
            self._here.model = model
        return self._here.model

    def _keep(self, response: "Response", *_: object, **__: object) -> None:
        text = response.content.decode("utf-8", "replace")
        self._here.answer = Answer(response.status_code, text)


@contextmanager
def transport_of(
    name: TransportName, http: aiohttp.ClientSession, endpoints: "Endpoints", answer_s: float
) -> Iterator[Transport]:
    """Give the transport of that name."""
    own = HttpTransport(http)
    if name == "own":
        yield own
        return
    with SdkTransport(endpoints, own, answer_s) as sdk:
        yield sdk


def _impatient(send: Callable[..., Any], answer_s: float) -> Callable[..., Any]:
    """Let a send give up after so long a silence; the SDK would wait for ever."""
    return lambda request, **options: send(request, **options | {"timeout": answer_s})


@cache
def _silent_model() -> Any:
    """Make a model that writes no log: what it would write are answers about the account."""
    sdk = _imported()
    with tempfile.TemporaryDirectory(prefix="fyers-sdk-") as folder:
        model = sdk.FyersModel(log_path=folder)
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            for handler in tuple(logger.handlers):
                logger.removeHandler(handler)
                handler.close()
            logger.disabled = True
    return model


def _imported() -> Any:
    """Import the SDK, which only those pay for who use it."""
    try:
        return importlib.import_module("fyers_apiv3.fyersModel")
    except ImportError as error:
        raise ConfigError(
            f"broker.transport is sdk, which is not installed ({error}): run make setup, or set it "
            "to own"
        ) from error
