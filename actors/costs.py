"""Costs: what each fill adds to the costs of its order, by flat rates or by those of its day."""

from datetime import date
from decimal import Decimal

from actors.charges import NoChargeRates, taxed_side, turnover_of
from actors.holding import Holding
from actors.instruments import Instrument
from actors.messages import ExecutionReport
from actors.orders import Order
from actors.policies import ExecutionSettings


class Costs:
    """Reckon what orders cost, in rupees."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self._settings = settings

    def problem(self, instrument: Instrument, day: date) -> str | None:
        """Return why an entry could not be charged for; rates once known stay so for its exit."""
        if self._settings.charges == "flat":
            return None
        try:
            self._settings.charge_table.of_instrument(instrument, day)
        except NoChargeRates as error:
            return str(error)
        return None

    def of_fill(
        self, holding: Holding, order: Order, report: ExecutionReport, day: date
    ) -> Decimal:
        """Return what a fill adds to the costs of its order, and keep count of them there."""
        settings = self._settings
        placed = order.placed
        if settings.charges == "flat":
            if order.booked:
                return Decimal(0)
            is_entry = placed.purpose == "entry"
            return settings.brokerage_entry if is_entry else settings.brokerage_exit
        instrument = holding.instrument
        order.turnover += turnover_of(instrument, report.last_price, report.last_quantity)
        rates = settings.charge_table.of_instrument(instrument, day)
        side = taxed_side(instrument, report.side, placed.purpose)
        total = rates.charges(side, order.turnover).total
        added = total - order.charged
        order.charged = total
        return added
