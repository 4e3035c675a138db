"""Reconciliation: do the log of this program and the books of the broker say the same?

Pure comparison and the file that keeps its last outcome. When to compare, and what a difference
forbids, is for the order gateway to say.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from actors.messages import PlaceOrder
from actors.options import is_option_symbol
from daemon.errors import TraderError

FILE_NAME = "reconciliation.json"

DifferenceKind = Literal["position", "stranger_order", "duplicate_order", "unmanaged_position"]


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says: signed units of all fills, and the orders without an end."""

    positions: dict[str, int]
    unfinished: dict[str, str]  # client order id -> instrument
    known: frozenset[str] = frozenset()  # instruments of all fills, also of those that are closed


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing on which log and broker do not agree."""

    kind: DifferenceKind
    instrument: str
    ours: str
    brokers: str
    blocks: bool  # whether entries in the instrument are refused


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one comparison; ages count from `agreed_ns`."""

    checked_ns: int  # real clock
    agreed_ns: int  # real clock, of the last comparison without a difference; 0: never yet
    differences: tuple[Difference, ...]
    unsettled: tuple[str, ...] = ()  # instruments with an order on its way: not judged

    @property
    def agreed(self) -> bool:
        return not self.differences

    def refusal(self, instrument: str) -> str | None:
        """Return why an entry in this instrument must wait, or None."""
        for difference in self.differences:
            if difference.blocks and _concerns(difference.instrument, instrument):
                return (
                    f"log and broker differ ({difference.kind}): ours {difference.ours}, "
                    f"the broker's {difference.brokers}"
                )
        return None


def compare(
    ledger: Ledger,
    positions: Mapping[str, int],
    open_orders: Collection[PlaceOrder],
    traded: Collection[str],
    managed: Mapping[str, int] | None = None,
) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """Return the differences, and the instruments that cannot be judged yet.

    An instrument with an unfinished order is on the move: its position is not judged, and what we
    hold unfinished and the broker not open is for the gateway to ask after. Positions and orders
    in what is not `traded` here belong to somebody else: told, and in nobody's way. An option is
    traded here from its first fill on. `managed` is what execution holds, once it has heard of
    everything in the log; None: not yet.
    """
    moving = set(ledger.unfinished.values())
    differences = []
    for name in sorted(set(ledger.positions) | set(positions)):
        ours, theirs = ledger.positions.get(name, 0), positions.get(name, 0)
        if ours != theirs and name not in moving:
            differences.append(
                Difference(
                    kind="position",
                    instrument=name,
                    ours=f"{ours} units",
                    brokers=f"{theirs} units",
                    blocks=name in traded or name in ledger.known,
                )
            )
    if managed is not None:
        differences += _unmanaged(ledger.positions, managed, positions)
    seen: set[str] = set()
    for order in open_orders:
        tag = order.client_order_id
        is_ours = tag in ledger.unfinished
        if is_ours and tag not in seen:
            seen.add(tag)
            continue
        differences.append(
            Difference(
                kind="duplicate_order" if is_ours else "stranger_order",
                instrument=order.instrument,
                ours="one order" if is_ours else "no such order",
                brokers=f"{order.side} {order.quantity}, order {tag}",
                blocks=order.instrument in traded or order.instrument in ledger.known,
            )
        )
    return tuple(differences), tuple(sorted(moving))


def _unmanaged(
    logged: Mapping[str, int], managed: Mapping[str, int], positions: Mapping[str, int]
) -> Iterator[Difference]:
    for name in sorted(set(logged) | set(managed)):
        ours, known = logged.get(name, 0), managed.get(name, 0)
        if ours != known:
            yield Difference(
                kind="unmanaged_position",
                instrument=name,
                ours=f"{ours} units, of which execution knows {known}",
                brokers=f"{positions.get(name, 0)} units",
                blocks=True,
            )


def _concerns(differing: str, instrument: str) -> bool:
    """Tell whether a difference holds back an entry: in options, one in any option does."""
    if is_option_symbol(differing):
        return is_option_symbol(instrument)
    return differing == instrument


def write(folder: Path, outcome: Reconciliation) -> None:
    """Keep the outcome for `status` and `reconcile`; a reader sees the old one or the new one."""
    part = folder / f".{FILE_NAME}"
    part.write_bytes(msgspec.json.encode(outcome))
    part.replace(folder / FILE_NAME)


def read(folder: Path, now_ns: int) -> dict[str, Any] | None:
    """Return the last outcome as JSON values, with ages in seconds; None when there is none."""
    path = folder / FILE_NAME
    try:
        outcome = msgspec.json.decode(path.read_bytes(), type=Reconciliation)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise TraderError(f"{path} cannot be read: {error}; the daemon writes it anew") from error
    return {
        "agreed": outcome.agreed,
        "checked_age_s": round((now_ns - outcome.checked_ns) / 1e9, 3),
        "agreement_age_s": round((now_ns - outcome.agreed_ns) / 1e9, 3)
        if outcome.agreed_ns
        else None,
        "differences": [msgspec.to_builtins(difference) for difference in outcome.differences],
        "unsettled": list(outcome.unsettled),
    }
