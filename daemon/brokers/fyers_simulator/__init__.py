"""A broker that speaks Fyers API v3 on loopback: REST, data socket, order socket, an exchange.

It stands in for the real one, which tests cannot reach, and the official SDK is the proof that it
is right (tests/test_integration/test_fyers_sdk.py). Nothing in it ever connects to anything.

    async with FyersSimulator(SimulatorSettings(seed=7)) as simulator:
        simulator.urls.api, .data, .public, .login, .data_socket, .order_socket   # where it is
        simulator.account.app_id, .secret, .client_id, .pin, .totp_secret         # who may log in
        simulator.token()                              # a good access token, without a login
        await simulator.advance(5)                     # five seconds of market time
        await simulator.set_price("NSE:SBIN-EQ", 820)  # trade there now; orders match
        simulator.faults.inject("unanswered", path="POST /api/v3/orders")   # see faults.py
        simulator.exchange.orders, .trades, simulator.portfolio.net(symbol)  # the truth
        simulator.exchange.place(body, source="W")     # a stranger's order

Market time stands still until `advance` moves it, or runs by itself with `speed`. The same seed and
the same calls give the same market. `Exchange` works without HTTP, for tests of order handling.
"""

from daemon.brokers.fyers_simulator.faults import ALL_FAULTS, SCHEDULED, Fault, FaultKind, Faults
from daemon.brokers.fyers_simulator.limits import RateLimits
from daemon.brokers.fyers_simulator.login import Account
from daemon.brokers.fyers_simulator.server import (
    DEFAULT_START,
    FyersSimulator,
    SimulatorSettings,
    Urls,
)

__all__ = [
    "ALL_FAULTS",
    "DEFAULT_START",
    "SCHEDULED",
    "Account",
    "Fault",
    "FaultKind",
    "Faults",
    "FyersSimulator",
    "RateLimits",
    "SimulatorSettings",
    "Urls",
]
