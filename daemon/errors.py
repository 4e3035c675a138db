"""The exception tree of the daemon: refusing is a value, failing is one of these.

TraderError
├── ConfigError            settings or instruments that cannot be used, all problems at once
├── DataError              market data that cannot be used
├── BusError               the message server is gone, full or not ours
├── ReplayError            a recording that is damaged or incomplete
├── PartCrashed            a part of the daemon ended without being asked to
└── BrokerError
    ├── BrokerUnavailable  the outcome is unknown: ask the broker, never repeat an order
    └── BrokerRejected     the broker said no
        ├── LoginNeeded    it takes no call before a login
        └── TooManyCalls   the budget of calls is used up for now

`hrm/` raises ValueError for bad tensors and its own IntegrityError for weights that do not match.
"""

from actors.messages import RejectKind


class TraderError(Exception):
    """Base of everything this program raises on purpose."""


class ConfigError(TraderError):
    """Settings that cannot be used; the text names file, key, value and remedy."""


class DataError(TraderError):
    """Market data that cannot be used; the text names file, row, value and remedy."""


class BusError(TraderError):
    """The bus cannot be reached or refused a command; what was not acknowledged comes again."""


class NewsError(TraderError):
    """The news feed answered something that is no feed, or more than is read."""


class ReplayError(TraderError):
    """A recording that is damaged, incomplete or of another version."""


class PartCrashed(TraderError):
    """A part of the daemon ended without being asked to; its supervisor starts it again."""


class BrokerError(TraderError):
    """Base of what can go wrong at the broker."""


class BrokerUnavailable(BrokerError):
    """The broker did not answer: whether the request had an effect is unknown."""


class BrokerRejected(BrokerError):
    """The broker refused the request, for the reason given.

    `kind`: whether it would refuse the same again, later, without a login, or at a slower pace.
    """

    def __init__(self, reason: str, kind: RejectKind = "permanent") -> None:
        super().__init__(reason)
        self.kind: RejectKind = kind


class LoginNeeded(BrokerRejected):
    """The broker does not take the access token: hrm-trader login. Nothing was carried out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "auth")


class TooManyCalls(BrokerRejected):
    """The call was not made, or not carried out: the budget of calls is used up for now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "rate")
