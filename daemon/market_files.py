"""The data files beside settings.yaml as they are spelled, and what they become.

The lot arithmetic is in actors/instruments.py, the calendar in actors/session.py.
"""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from actors.charges import ChargeTable
from actors.instruments import Instrument, InstrumentCatalogue, InstrumentKind, PremiumRange
from actors.policies import ComplexityCoefficients, EventSettings
from actors.session import SessionTable, timeframe_minutes
from actors.session_table import CalendarDate
from daemon.config_files import Problems, read_document, validated

INSTRUMENTS_FILE: Final = "instruments.yaml"
DEMO_INSTRUMENTS_FILE: Final = "demo_instruments.yaml"
SESSIONS_FILE: Final = "sessions.yaml"
COMPLEXITY_FILE: Final = "complexity.yaml"
EVENTS_FILE: Final = "events.yaml"
CHARGES_FILE: Final = "charges.yaml"


class FileModel(BaseModel):
    """Refuse unknown keys and later changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InstrumentEntry(FileModel):
    """One instrument as instruments.yaml spells it."""

    name: str
    symbol: str
    exchange_symbol: str = Field(alias="exchange-symbol")
    type: InstrumentKind = "stock"
    instrument_type: InstrumentKind | None = None
    lot_size: int = Field(ge=1)
    tick_size: Decimal = Field(gt=0)
    option_premium_range: PremiumRange | None = None
    freeze_quantity: int | None = Field(default=None, ge=2)
    expiry: CalendarDate | None = None
    session: str | None = None

    @model_validator(mode="after")
    def _makes_an_instrument(self) -> Self:
        if self.instrument_type not in {None, self.type}:
            raise ValueError(
                f"instrument_type {self.instrument_type} differs from type {self.type}: "
                "they must be the same"
            )
        self.instrument()
        return self

    def instrument(self) -> Instrument:
        """Build the instrument; raises ValueError where the values do not fit together."""
        return Instrument(
            symbol=self.symbol,
            name=self.name,
            exchange_symbol=self.exchange_symbol,
            kind=self.type,
            lot_size=self.lot_size,
            tick_size=self.tick_size,
            option_premium_range=self.option_premium_range,
            freeze_quantity=self.freeze_quantity,
            expiry=self.expiry,
            session=self.session or "",
        )


def _checked_timeframe(timeframe: str) -> str:
    timeframe_minutes(timeframe)
    return timeframe


class InstrumentsFile(FileModel):
    """The whole of instruments.yaml."""

    instruments: tuple[InstrumentEntry, ...] = Field(min_length=1)
    timeframes: tuple[Annotated[str, AfterValidator(_checked_timeframe)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _ = self.catalogue
        if len(set(self.timeframes)) < len(self.timeframes):
            raise ValueError(f"timeframes {', '.join(self.timeframes)} name one twice: remove it")
        return self

    @property
    def catalogue(self) -> InstrumentCatalogue:
        """The instruments, findable by any spelling."""
        return InstrumentCatalogue(entry.instrument() for entry in self.instruments)

    def extended(self, more: "InstrumentsFile") -> "InstrumentsFile":
        """Return this file with the instruments and bar lengths of another behind its own."""
        added = tuple(name for name in more.timeframes if name not in self.timeframes)
        return InstrumentsFile(
            instruments=self.instruments + more.instruments, timeframes=self.timeframes + added
        )


def read_instruments(folder: Path, problems: Problems, *, demo: bool) -> InstrumentsFile:
    """Read instruments.yaml; with demo, the demo's instruments behind them.

    Raise the problems before using what comes back.
    """
    path = folder / INSTRUMENTS_FILE
    instruments = validated(InstrumentsFile, read_document(path, problems), problems)
    if demo:
        path = folder / DEMO_INSTRUMENTS_FILE
        more = validated(InstrumentsFile, read_document(path, problems), problems)
        try:
            return instruments.extended(more)
        except ValueError as error:
            problems.add(str(path), f"does not go with {INSTRUMENTS_FILE}: {error}")
    return instruments


def read_sessions(folder: Path, problems: Problems) -> SessionTable:
    """Read sessions.yaml; raise the problems before using what comes back."""
    return validated(SessionTable, read_document(folder / SESSIONS_FILE, problems), problems)


def read_events(folder: Path, problems: Problems) -> EventSettings:
    """Read events.yaml; without the file nothing is known of events. Problems as above."""
    path = folder / EVENTS_FILE
    if not path.exists():
        return EventSettings()
    return validated(EventSettings, read_document(path, problems), problems)


def read_coefficients(folder: Path, problems: Problems) -> ComplexityCoefficients:
    """Read complexity.yaml; without the file nothing is forecast. Problems as above."""
    path = folder / COMPLEXITY_FILE
    if not path.exists():
        return ComplexityCoefficients()
    return validated(ComplexityCoefficients, read_document(path, problems), problems)


def read_charges(folder: Path, problems: Problems) -> ChargeTable:
    """Read charges.yaml; without the file no statutory charges are known. Problems as above."""
    path = folder / CHARGES_FILE
    if not path.exists():
        return ChargeTable()
    return validated(ChargeTable, read_document(path, problems), problems)
