"""The broker's symbol master as it is downloaded: the options of an underlying.

Files are the JSON ones, NSE_CM_sym_master.json and so on: one row per symbol. The underlying's row
is in the cash file (CM) and its options are in the derivatives file (FO) of the same exchange.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import msgspec
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from actors.messages import OptionContract, OptionKind
from daemon.errors import DataError

MasterRows = Mapping[str, Mapping[str, Any]]
_INDIA: Final = ZoneInfo("Asia/Kolkata")
_TRADABLE: Final = 1


def _day_of(seconds: object) -> object:
    """Turn the epoch seconds that an expiry is given in, as text, into the day in India."""
    if not isinstance(seconds, str) or not seconds.isdecimal():
        return seconds
    return datetime.fromtimestamp(int(seconds), _INDIA).date()


class _Row(BaseModel):
    """The fields that matter here; the master has more."""

    symbol: str = Field(alias="symTicker", min_length=1)
    kind: OptionKind = Field(alias="optType")
    strike: Decimal = Field(alias="strikePrice", gt=0)
    expiry: Annotated[date, BeforeValidator(_day_of)] = Field(alias="expiryDate")
    lot_size: int = Field(alias="minLotSize", ge=1)
    freeze_quantity: int = Field(alias="qtyFreeze", ge=1)
    tick_size: Decimal = Field(alias="tickSize", gt=0)
    lower_price: Decimal = Field(alias="lowerPrice", ge=0)
    upper_price: Decimal = Field(alias="upperPrice", gt=0)
    updated: date = Field(alias="lastUpdate")


def read_master(paths: Iterable[Path]) -> MasterRows:
    """Read symbol master files and lay them together; raises DataError naming file and remedy."""
    rows: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        try:
            found = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
            raise DataError(f"{path} is no symbol master: it must hold one object per symbol")
        rows |= found
    return rows


class _Glance(msgspec.Struct):
    """What tells whether a row is wanted; a file has a hundred thousand."""

    fyToken: str = ""  # noqa: N815 - the broker's names
    underFyTok: str = ""  # noqa: N815


def rows_about(files: Iterable[bytes], underlyings: Collection[str]) -> MasterRows:
    """Return the rows of some broker symbols and of what derives from them; DataError.

    files: as downloaded. The rows of others are hardly read: it would stop the daemon for long.
    """
    try:
        listed: dict[str, msgspec.Raw] = {}
        for file in files:
            listed |= msgspec.json.decode(file, type=dict[str, msgspec.Raw])
        glances = {name: msgspec.json.decode(row, type=_Glance) for name, row in listed.items()}
    except msgspec.MsgspecError as error:
        raise DataError(f"no symbol master: {error}; it must hold one object per symbol") from error
    tokens = {glances[name].fyToken for name in underlyings if name in glances}
    return {
        name: json.loads(bytes(listed[name]), parse_float=Decimal)
        for name, glance in glances.items()
        if name in underlyings or glance.underFyTok in tokens
    }


def options_of(rows: MasterRows, underlying: str) -> list[OptionContract]:
    """Return the options on a broker symbol that may be traded; raises DataError for a bad row."""
    spot = rows.get(underlying)
    if spot is None or not spot.get("fyToken"):
        raise DataError(
            f"the symbol master has no {underlying}: give the cash file (CM) of its exchange too"
        )
    return [
        _contract(name, row)
        for name, row in rows.items()
        if row.get("underFyTok") == spot["fyToken"]
        and row.get("optType") in {"CE", "PE"}
        and row.get("tradeStatus") == _TRADABLE
    ]


def _contract(name: str, row: Mapping[str, Any]) -> OptionContract:
    try:
        return OptionContract(**_Row.model_validate(row).model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(
            f"symbol master, {name}: {field} = {row.get(field)!r}: {first['msg']}; download the "
            "file again"
        ) from error
