"""What can be listed: contracts with lots, ticks and freezes, and the master that finds them.

Prices are whole points: units of 10 to the minus `precision`, paise for everything of NSE and BSE.
The figures are those of the exchanges' circulars as far as they are known (lots and freeze
quantities of NSE: FAOP/70616, FAOP/75521; ticks by price: NSE, 15 Apr 2025); those of BSE's freeze
quantities are not confirmed. Start prices are round numbers, nothing more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Final, Literal
from zoneinfo import ZoneInfo

IST: Final = ZoneInfo("Asia/Kolkata")
NS_PER_SECOND: Final = 1_000_000_000

NSE, BSE = 10, 12  # exchange codes of the broker
CASH, DERIVATIVES, CURRENCY = 10, 11, 12  # segment codes

OptionType = Literal["CE", "PE", "XX"]
WeeklyExpiry = Literal["tue", "thu"]

_SEGMENT_NAMES: Final = {
    (NSE, CASH): "nse_cm",
    (NSE, DERIVATIVES): "nse_fo",
    (BSE, CASH): "bse_cm",
    (BSE, DERIVATIVES): "bse_fo",
    (NSE, CURRENCY): "cde_fo",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlying:
    """An index or a share that derivatives are written on."""

    symbol: str  # "NSE:NIFTY50-INDEX"
    root: str  # how its derivatives begin: "NIFTY"
    scrip: str  # the exchange's number of it
    price: int  # paise at the start of the seeded process
    annual_volatility: float  # of the seeded process and at the money
    hsm_name: str = ""  # topic token of an index
    lot: int = 1  # of its derivatives
    freeze: int = 0  # most units per derivative order; 0: no derivatives
    strike_step: int = 0  # paise; 0: no options
    weekly: bool = False

    @property
    def exchange(self) -> int:
        return NSE if self.symbol.startswith("NSE:") else BSE

    @property
    def is_index(self) -> bool:
        return self.symbol.endswith("-INDEX")


UNDERLYINGS: Final = (
    Underlying(symbol="NSE:NIFTY50-INDEX", root="NIFTY", scrip="26000", hsm_name="Nifty 50",
               price=25_000_00, annual_volatility=0.13, lot=65, freeze=1800, strike_step=50_00,
               weekly=True),
    Underlying(symbol="NSE:NIFTYBANK-INDEX", root="BANKNIFTY", scrip="26009",
               hsm_name="Nifty Bank", price=56_000_00, annual_volatility=0.15, lot=30, freeze=600,
               strike_step=100_00),
    Underlying(symbol="NSE:FINNIFTY-INDEX", root="FINNIFTY", scrip="26037",
               hsm_name="Nifty Fin Service", price=26_500_00, annual_volatility=0.15, lot=60,
               freeze=1800, strike_step=50_00),
    Underlying(symbol="NSE:MIDCPNIFTY-INDEX", root="MIDCPNIFTY", scrip="26074",
               hsm_name="NIFTY MID SELECT", price=13_000_00, annual_volatility=0.17, lot=120,
               freeze=2800, strike_step=25_00),
    Underlying(symbol="BSE:SENSEX-INDEX", root="SENSEX", scrip="1", hsm_name="SENSEX",
               price=82_000_00, annual_volatility=0.13, lot=20, freeze=1000, strike_step=100_00,
               weekly=True),
    Underlying(symbol="BSE:BANKEX-INDEX", root="BANKEX", scrip="12", hsm_name="BANKEX",
               price=63_000_00, annual_volatility=0.15, lot=30, freeze=900, strike_step=100_00),
    Underlying(symbol="NSE:INDIAVIX-INDEX", root="INDIAVIX", scrip="26017", hsm_name="India VIX",
               price=13_00, annual_volatility=0.80),
    Underlying(symbol="NSE:RELIANCE-EQ", root="RELIANCE", scrip="2885", price=1_400_00,
               annual_volatility=0.24, lot=500, freeze=50_000),
    Underlying(symbol="NSE:TCS-EQ", root="TCS", scrip="11536", price=3_100_00,
               annual_volatility=0.24, lot=175, freeze=17_500),
    Underlying(symbol="NSE:HDFCBANK-EQ", root="HDFCBANK", scrip="1333", price=980_00,
               annual_volatility=0.20, lot=550, freeze=55_000),
    Underlying(symbol="NSE:SBIN-EQ", root="SBIN", scrip="3045", price=815_40,
               annual_volatility=0.24, lot=750, freeze=75_000),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One symbol of the master."""

    symbol: str
    token: str
    exchange: int
    segment: int
    instrument: int  # the broker's code: 0 share, 10 index, 11 FUTIDX, 13 FUTSTK, 14 OPTIDX
    underlying: Underlying
    lot: int
    tick: int  # points
    freeze: int  # most units per order; 0: none
    previous_close: int
    lower: int  # price band, points
    upper: int
    description: str
    expiry: date | None = None
    strike: int = 0  # points
    option_type: OptionType = "XX"
    precision: int = 2  # decimals of a price; one point is 10 to the minus that
    session: str = ""  # market of sessions.yaml whose hours it keeps; derived when empty

    @property
    def scale(self) -> int:
        """Points in one rupee."""
        return int(10**self.precision)

    @property
    def fy_token(self) -> str:
        expiry = "000000" if self.expiry is None else f"{self.expiry:%y%m%d}"
        return f"{self.exchange}{self.segment}{expiry}{self.token}"

    @property
    def is_index(self) -> bool:
        return self.instrument == 10

    @property
    def segment_name(self) -> str:
        return _SEGMENT_NAMES[self.exchange, self.segment]

    @property
    def market(self) -> str:
        """The market of sessions.yaml whose hours it keeps."""
        if self.session:
            return self.session
        exchange = "NSE" if self.exchange == NSE else "BSE"
        is_share = self.segment == CASH and not self.is_index
        return f"{exchange}_CASH" if is_share else exchange

    def topic(self, kind: Literal["sf", "if", "dp"]) -> str:
        """Return the data socket's name for this contract."""
        token = self.underlying.hsm_name if self.is_index else self.token
        return f"{kind}|{self.segment_name}|{token}"

    @property
    def feed_topic(self) -> str:
        return self.topic("if" if self.is_index else "sf")

    @property
    def expires_at_ns(self) -> int | None:
        """The close of the expiry day, 15:30 IST, from which options are valued."""
        if self.expiry is None:
            return None
        return instant_ns(self.expiry, time(15, 30))


def instant_ns(day: date, moment: time) -> int:
    """Return a local time of India as nanoseconds UTC."""
    local = datetime.combine(day, moment, tzinfo=IST)
    return round(local.astimezone(UTC).timestamp()) * NS_PER_SECOND


def local_time(now_ns: int) -> datetime:
    """Return an instant as local time of India, to the second."""
    return datetime.fromtimestamp(now_ns // NS_PER_SECOND, IST)


def tick_of(price: int, *, is_index_future: bool = False) -> int:
    """Return the tick in paise that NSE sets for a share, or an index future, at this price."""
    steps = (
        ((15_000_00, 5), (30_000_00, 10), (10**12, 20))
        if is_index_future
        else ((250_00, 1), (1_000_00, 5), (5_000_00, 10), (10_000_00, 50), (20_000_00, 100),
              (10**12, 500))
    )  # fmt: skip
    return next(tick for limit, tick in steps if price <= limit)


def on_tick(price: float, tick: int) -> int:
    """Move a price in points onto the grid, never below one tick."""
    return max(tick, round(price / tick) * tick)


class Master:
    """All contracts of a day, by symbol, by token and by data topic."""

    def __init__(self, contracts: Iterator[Contract]) -> None:
        self.by_symbol: dict[str, Contract] = {}
        self.by_topic: dict[str, Contract] = {}
        for contract in contracts:
            self.add(contract)

    def copy(self) -> "Master":
        """Return a master that can be changed without changing this one."""
        twin = Master(iter(()))
        twin.by_symbol, twin.by_topic = dict(self.by_symbol), dict(self.by_topic)
        return twin

    def list_missing(self, other: "Master") -> None:
        """List the contracts of another day that are not listed yet.

        They get numbers that nothing has had before: clients tell contracts apart by them.
        """
        free = 1 + max(int(contract.token) for contract in self)
        for contract in other:
            if contract.symbol not in self.by_symbol:
                self.add(replace(contract, token=str(free)))
                free += 1

    def remove(self, contract: Contract) -> None:
        """Take a contract off the list."""
        del self.by_symbol[contract.symbol]
        self.by_topic.pop(contract.feed_topic, None)
        self.by_topic.pop(contract.topic("dp"), None)

    def add(self, contract: Contract) -> None:
        """List a contract, replacing one of the same symbol."""
        self.by_symbol[contract.symbol] = contract
        self.by_topic[contract.feed_topic] = contract
        if not contract.is_index:
            self.by_topic[contract.topic("dp")] = contract

    def change(self, symbol: str, **fields: int) -> Contract:
        """Give a contract another lot, tick, freeze, band or previous close."""
        changed = replace(self.by_symbol[symbol], **fields)  # type: ignore[arg-type]
        self.add(changed)
        return changed

    def __iter__(self) -> Iterator[Contract]:
        return iter(self.by_symbol.values())

    def get(self, symbol: str) -> Contract | None:
        return self.by_symbol.get(symbol)

    def __getitem__(self, symbol: str) -> Contract:
        return self.by_symbol[symbol]

    def chain(self, underlying: str, expiry: date | None = None) -> list[Contract]:
        """Return the options on an underlying, by expiry, strike and type."""
        options = [
            contract
            for contract in self
            if contract.option_type != "XX"
            and contract.underlying.symbol == underlying
            and (expiry is None or contract.expiry == expiry)
        ]
        return sorted(options, key=lambda c: (c.expiry, c.strike, c.option_type))

    def expiries(self, underlying: str) -> list[date]:
        """Return the expiry dates of the options on an underlying, nearest first."""
        return sorted({c.expiry for c in self.chain(underlying) if c.expiry is not None})
