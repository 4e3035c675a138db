"""Charges: what an executed order costs by law, exchange and broker, at the rates of its day.

Rates are data (config/charges.yaml), each with its first day and its source. Amounts are exact;
only the total of an order is rounded, half up to the paisa. Contract notes round some of the parts
to the rupee, so a broker's bill may differ by that much.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.instruments import Instrument
from actors.messages import Purpose, Side

Product = Literal["equity_intraday", "equity_delivery", "futures", "options"]
Percent = Annotated[Decimal, Field(ge=0, le=100)]
PerCrore = Annotated[Decimal, Field(ge=0, le=10_000_000)]

_CRORE: Final = Decimal(10_000_000)
_PAISA: Final = Decimal("0.01")


class NoChargeRates(ValueError):
    """No rates are known for that exchange, product and day; the text says what to add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCharges:
    """What one executed order costs, in rupees, by who gets it; only `total` is rounded."""

    brokerage: Decimal
    transaction_tax: Decimal  # STT
    exchange: Decimal  # its transaction charge
    investor_fund: Decimal
    regulator: Decimal  # SEBI
    stamp_duty: Decimal
    clearing: Decimal
    goods_and_services_tax: Decimal

    @property
    def total(self) -> Decimal:
        """The sum of all parts, to the paisa."""
        parts = (
            self.brokerage + self.transaction_tax + self.exchange + self.investor_fund
            + self.regulator + self.stamp_duty + self.clearing + self.goods_and_services_tax
        )  # fmt: skip
        return parts.quantize(_PAISA, ROUND_HALF_UP)


class ChargeRates(BaseModel):
    """Hold the rates of one product on one exchange from a day on, of the value traded."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    effective_from: date
    source: str = Field(min_length=1)
    brokerage: Annotated[Decimal, Field(ge=0)]
    """Rupees per executed order, whatever its number of fills."""
    brokerage_percent: Percent | None = None
    """Where this makes less than `brokerage`, it is taken instead; None: never."""
    stt_buy_percent: Percent = Decimal(0)
    stt_sell_percent: Percent
    transaction_per_crore: PerCrore
    investor_fund_per_crore: PerCrore
    sebi_per_crore: PerCrore
    stamp_buy_percent: Percent
    clearing_percent: Percent = Decimal(0)
    gst_percent: Percent
    """Of brokerage, transaction charge, investor fund, SEBI fee and clearing."""

    def charges(self, side: Side, turnover: Decimal) -> OrderCharges:
        """Return what an order costs of which `turnover` rupees have been executed."""
        if not turnover.is_finite() or turnover <= 0:
            raise ValueError(f"turnover must be above 0 rupees, was {turnover}")
        is_buy = side == "buy"
        brokerage = self.brokerage
        if self.brokerage_percent is not None:
            brokerage = min(brokerage, turnover * self.brokerage_percent / 100)
        exchange = turnover * self.transaction_per_crore / _CRORE
        fund = turnover * self.investor_fund_per_crore / _CRORE
        regulator = turnover * self.sebi_per_crore / _CRORE
        clearing = turnover * self.clearing_percent / 100
        taxed = brokerage + exchange + fund + regulator + clearing
        stt_percent = self.stt_buy_percent if is_buy else self.stt_sell_percent
        return OrderCharges(
            brokerage=brokerage,
            transaction_tax=turnover * stt_percent / 100,
            exchange=exchange,
            investor_fund=fund,
            regulator=regulator,
            stamp_duty=turnover * self.stamp_buy_percent / 100 if is_buy else Decimal(0),
            clearing=clearing,
            goods_and_services_tax=taxed * self.gst_percent / 100,
        )


class ChargeTable(BaseModel):
    """Hold all known rates: by exchange and product, oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rates: Mapping[str, Mapping[Product, tuple[ChargeRates, ...]]] = {}
    listed_on: Mapping[str, str] = {}
    """Broker symbol -> exchange of its derivatives, where the symbol names another one."""

    @model_validator(mode="after")
    def _days_ascend(self) -> Self:
        for exchange, products in self.rates.items():
            for product, rows in products.items():
                days = [row.effective_from for row in rows]
                if not days or days != sorted(set(days)):
                    raise ValueError(
                        f"{exchange} {product} needs at least one row, oldest first and each from "
                        f"a day of its own, was {', '.join(map(str, days)) or 'empty'}"
                    )
        return self

    def on(self, exchange: str, product: Product, day: date) -> ChargeRates:
        """Return the rates in force on a day, or raise NoChargeRates."""
        rows = self.rates.get(exchange, {}).get(product, ())
        if not rows:
            raise NoChargeRates(
                f"no charges are known for {product} on {exchange}: add them to charges.yaml or "
                "set execution.charges to flat"
            )
        in_force = [row for row in rows if row.effective_from <= day]
        if not in_force:
            raise NoChargeRates(
                f"charges for {product} on {exchange} are known from {rows[0].effective_from}, "
                f"not on {day}: add a row to charges.yaml or set execution.charges to flat"
            )
        return in_force[-1]

    def of_instrument(self, instrument: Instrument, day: date) -> ChargeRates:
        """Return the rates that an order of an instrument pays on a day, or raise NoChargeRates."""
        exchange = self.listed_on.get(instrument.exchange_symbol, instrument.exchange)
        return self.on(exchange, product_of(instrument), day)


def product_of(instrument: Instrument) -> Product:
    """Return how an instrument is traded: an index in options, a share within the day."""
    symbol = instrument.exchange_symbol
    if instrument.kind == "index" or symbol.endswith(("CE", "PE")):
        return "options"
    return "futures" if symbol.endswith("FUT") else "equity_intraday"


def taxed_side(instrument: Instrument, side: Side, purpose: Purpose) -> Side:
    """Return the side that charges see: options on an index are bought first, whatever the view."""
    if instrument.kind != "index":
        return side
    return "buy" if purpose == "entry" else "sell"


def turnover_of(instrument: Instrument, price: Decimal, units: int) -> Decimal:
    """Return the rupees that charges are a share of.

    Of an index that is the premium, which nobody knows on paper: the same estimate as for its size.
    """
    return instrument.cost_per_lot(price) / instrument.lot_size * units
