"""A process that holds the official SDK, unmodified, pointed at a simulator on loopback.

The SDK's sockets are singletons with threads that outlive them, so each test gives them a process.
Commands come as JSON lines on stdin, events go out as JSON lines on stdout; what else the SDK
prints is passed on as it is. `python fyers_sdk_child.py URLS [SPEED]`: with a SPEED above 1 the
SDK's waits (and nothing else) are so many times shorter.
"""

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

from fyers_apiv3 import fyersModel
from fyers_apiv3.FyersWebsocket import data_ws, defines, order_ws

_written = threading.Lock()


def tell(**event: Any) -> None:
    """Write one event; the SDK calls back from several threads."""
    with _written:
        sys.stdout.write(json.dumps(event, default=_plain) + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | bytearray) else str(value)


def telling(event: str) -> Any:
    """Return a callback that reports what it was called with."""
    return lambda *arguments: tell(event=event, value=arguments[0] if arguments else None)


def point_at(urls: dict[str, str], speed: float) -> None:
    """Set the addresses that the SDK keeps in its modules and classes."""
    fyersModel.Config.API = urls["api"]
    fyersModel.Config.DATA_API = urls["data"]
    defines.INDEX_HSM_MAPPING_API = f"{urls['public']}/index_hsm_mapping.json"

    class Conversion(data_ws.SymbolConversion):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.symbols_token_api = f"{urls['data']}/symbol-token"

    data_ws.SymbolConversion = Conversion
    if speed > 1:
        wait = time.sleep
        time.sleep = lambda seconds: wait(float(seconds) / speed)


class Holder:
    """The SDK's objects by name, and the commands that reach them."""

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        self._made: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()

    def make(self, name: str, values: dict[str, Any]) -> None:
        """Construct `session`, `model`, `async_model`, `data` or `order`."""
        if name == "session":
            self._made[name] = fyersModel.SessionModel(**values)
        elif name in ("model", "async_model"):
            is_async = name == "async_model"
            self._made[name] = fyersModel.FyersModel(is_async=is_async, **values)
        elif name == "data":
            self._made[name] = self._data_socket(values)
        else:
            self._made[name] = self._order_socket(values)
        tell(event="made", value=name)

    def call(self, name: str, method: str, arguments: list[Any], values: dict[str, Any]) -> None:
        """Call a method and report what it returns; {"hex": ...} stands for bytes."""
        arguments = [
            bytes.fromhex(argument["hex"]) if isinstance(argument, dict) else argument
            for argument in arguments
        ]
        result = getattr(self._made[name], method)(*arguments, **values)
        if asyncio.iscoroutine(result):
            result = self._loop.run_until_complete(result)
        tell(event="result", value=result)

    def set(self, name: str, values: dict[str, Any]) -> None:
        """Set attributes of an object."""
        for attribute, value in values.items():
            setattr(self._made[name], attribute, value)
        tell(event="result", value=None)

    def _data_socket(self, values: dict[str, Any]) -> Any:
        socket = data_ws.FyersDataSocket(
            on_message=telling("message"),
            on_error=telling("error"),
            on_connect=telling("connect"),
            on_close=telling("close"),
            **values,
        )
        socket._FyersDataSocket__url = self._urls["data_socket"]
        return socket

    def _order_socket(self, values: dict[str, Any]) -> Any:
        socket = order_ws.FyersOrderSocket(
            on_orders=telling("orders"),
            on_trades=telling("trades"),
            on_positions=telling("positions"),
            on_general=telling("general"),
            on_error=telling("order_error"),
            on_connect=telling("order_connect"),
            on_close=telling("order_close"),
            **values,
        )
        socket._FyersOrderSocket__url = self._urls["order_socket"]
        return socket


def main() -> None:
    """Serve commands until stdin ends."""
    urls = json.loads(sys.argv[1])
    point_at(urls, float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
    holder = Holder(urls)
    tell(event="ready")
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "make" in command:
                holder.make(command["make"], command["values"])
            elif "set" in command:
                holder.set(command["set"], command["values"])
            else:
                holder.call(
                    command["call"], command["method"], command["arguments"], command["values"]
                )
        except Exception as error:  # noqa: BLE001  whatever the SDK raises is the answer
            tell(event="raised", value=repr(error))
    os._exit(0)  # the SDK's threads are no daemons: nothing else ends them


if __name__ == "__main__":
    main()
