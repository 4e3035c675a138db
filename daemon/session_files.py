"""Where sessions lie and how one is begun: candle files and settings to a plan, plans to folders.

`<state>/sessions/<id>/` holds a session, `<state>/current` names the one that runs or ran last.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from actors.instruments import InstrumentCatalogue, UnknownInstrument
from actors.policies import FeedSettings
from actors.session import SessionCalendar, timeframe_minutes
from daemon.bus import CHILDREN_PER_ENTRY
from daemon.demo_data import demo_candles
from daemon.errors import ConfigError, DataError, ReplayError
from daemon.history import CandleTable, load_candles
from daemon.journal import read_seal
from daemon.plan import FILE_NAME, MarketPlan, SessionPlan, TraderName, read_plan, versions
from daemon.settings import Settings
from hrm.features import FEATURE_SCHEMA_SHA256
from hrm.manifest import IntegrityError, read_manifest, verified_bytes

MOST_MARKETS = CHILDREN_PER_ENTRY - 4
"""Every instrument may close a bar on one TimeEvent, beside a few alerts."""
_CURRENT = "current"
_SESSIONS = "sessions"


@dataclass(frozen=True)
class Market:
    """One instrument with the candles it is replayed from."""

    instrument: str
    label: str
    path: Path
    table: CandleTable
    timeframe: str = ""  # bars to decide on; by default those of the candles

    def plan(self) -> MarketPlan:
        """Return what the plan of a session says about it."""
        return MarketPlan(
            instrument=self.instrument,
            timeframe=self.timeframe or self.table.timeframe,
            label=self.label,
            path=str(self.path),
            sha256=self.table.sha256,
            rows=len(self.table),
            first_open_ns=int(self.table.open_ns[0]),
            repairs={found.rule: found.rows for found in self.table.quality.repairs},
        )


@dataclass(frozen=True)
class StreamedMarket:
    """One instrument whose prices come over a socket."""

    instrument: str
    timeframe: str
    label: str
    first_open_ns: int  # of the session day it is begun on: on another one it is another session

    def plan(self) -> MarketPlan:
        """Return what the plan of a session says about it."""
        return MarketPlan(
            instrument=self.instrument,
            timeframe=self.timeframe,
            label=self.label,
            path="",
            sha256="",
            rows=0,
            first_open_ns=self.first_open_ns,
            repairs={},
        )


AnyMarket = Market | StreamedMarket


def load_markets(
    files: Sequence[Path], names: Sequence[str], catalogue: InstrumentCatalogue
) -> list[Market]:
    """Load candle files; without any, the candles of the demo.

    `names` gives the instrument of each file, in order; without names they are read off the file
    names. Raises DataError for files that cannot be used, ConfigError for unknown instruments.
    """
    if not files:
        demo = demo_candles()
        table = load_candles(demo.path)
        return [Market(demo.instrument, demo.label, demo.path, table)]
    if len(files) > MOST_MARKETS:
        raise ConfigError(f"{len(files)} candle files: one session takes at most {MOST_MARKETS}")
    if names and len(names) != len(files):
        raise ConfigError(
            f"{len(files)} candle files but {len(names)} instruments: name one for each, in order"
        )
    markets: list[Market] = []
    for number, path in enumerate(files):
        table = load_candles(path)
        name = names[number] if names else table.symbol
        try:
            instrument = catalogue[name].symbol
        except UnknownInstrument as error:
            raise ConfigError(
                f"{path}: {error}; name the right one with --instrument, or add it to "
                "instruments.yaml"
            ) from error
        if any(market.instrument == instrument for market in markets):
            raise ConfigError(f"{path}: {instrument} has a file already: give each only one")
        label = f"{path.name}: {table.timeframe}-minute candles played as ticks"
        markets.append(Market(instrument, label, path, table))
    return markets


def as_configured(markets: Sequence[Market], feed: FeedSettings) -> list[Market]:
    """Give each market the bars of `feed.timeframe`; ConfigError where that cannot be.

    Also for an instrument that `feed.instruments` does not name: a daemon trades what its settings
    say, not what a file happens to hold.
    """
    for market in markets:
        if market.instrument not in feed.instruments:
            raise ConfigError(
                f"{market.path} holds {market.instrument}, but feed.instruments names "
                f"{', '.join(feed.instruments)}: add it there, or give another file"
            )
        wanted = timeframe_minutes(feed.timeframe)
        if wanted % market.table.timeframe_minutes:
            raise ConfigError(
                f"{market.path} has candles of {market.table.timeframe_minutes} minutes, of which "
                f"no bars of feed.timeframe {feed.timeframe!r} can be made: set it to a multiple"
            )
    return [replace(market, timeframe=feed.timeframe) for market in markets]


def within_days(
    markets: Sequence[Market],
    catalogue: InstrumentCatalogue,
    calendar: SessionCalendar,
    first: date | None,
    last: date | None,
) -> list[Market]:
    """Cut the candles to the days from `first` to `last`, both included, in each market's zone.

    Raises DataError when nothing is left of a market.
    """
    if first is None and last is None:
        return list(markets)
    cut: list[Market] = []
    for market in markets:
        exchange = catalogue[market.instrument].session
        zone = ZoneInfo(calendar.table.markets[exchange].timezone)
        start_ns = _midnight_ns(first, zone) if first else 0
        end_ns = _midnight_ns(last + timedelta(days=1), zone) if last else 2**63 - 1
        table = market.table.between(start_ns, end_ns)
        if not len(table):
            raise DataError(
                f"{market.path}: no candles from {first or 'the start'} to {last or 'the end'}: "
                "choose other days with --start and --end"
            )
        cut.append(replace(market, table=table))
    return cut


def _midnight_ns(day: date, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, time.min, zone).timestamp()) * 1_000_000_000


def check_model(folder: Path) -> tuple[str, str]:
    """Return the digest of the released model, or "" and why there is no valid one."""
    try:
        manifest = read_manifest(folder)
        verified_bytes(folder, manifest.released, manifest)
    except IntegrityError as error:
        return "", str(error)
    entry = manifest.models[manifest.released]
    if entry.features.schema_sha256 != FEATURE_SCHEMA_SHA256:
        return "", (
            f"{folder / manifest.released} was trained on other features than this version makes: "
            "train again with hrm-train"
        )
    return entry.sha256, ""


def make_plan(
    settings: Settings,
    catalogue: InstrumentCatalogue,
    calendar: SessionCalendar,
    markets: Sequence[AnyMarket],
    *,
    mode: str,
    now_ns: int,
    seed: int,
    speed: float | str,
    prefix: str | None = None,
    trader: TraderName = "model",
    broker: str = "simulated",
    simulator: str = "",
) -> SessionPlan:
    """Return the plan of a new session with an id of its own."""
    began = datetime.fromtimestamp(now_ns / 1e9, UTC)
    session = f"{began:%Y%m%dT%H%M%SZ}-{mode}-{secrets.token_hex(2)}"
    digest, reason = check_model(settings.session.model_dir)
    return SessionPlan(
        session=session,
        mode=mode,
        prefix=prefix or f"{mode}:v1",
        created_ns=now_ns,
        settings=settings.model_dump(mode="json", exclude={"secrets"}),
        instruments=[catalogue[market.instrument] for market in markets],
        calendar=calendar.table.model_dump(mode="json"),
        markets=[market.plan() for market in markets],
        speed=speed,
        seed=seed,
        models_dir=str(settings.session.model_dir.resolve()),
        model_digest=digest,
        no_model_reason=reason,
        trader=trader,
        broker=broker,
        simulator=simulator,
        versions=versions(),
    )


def begin_session(state_dir: Path, plan: SessionPlan) -> Path:
    """Make the folder of a new session and point `current` at it."""
    folder = state_dir / _SESSIONS / plan.session
    plan.write(folder)
    pointer = state_dir / f"{_CURRENT}.new"
    pointer.write_text(plan.session)
    pointer.replace(state_dir / _CURRENT)
    return folder


def current_session(state_dir: Path) -> Path | None:
    """Return the folder of the session that runs or ran last, None before the first."""
    try:
        folder = state_dir / _SESSIONS / (state_dir / _CURRENT).read_text().strip()
    except FileNotFoundError:
        return None
    return folder if (folder / FILE_NAME).is_file() else None


def open_session(
    state_dir: Path, markets: Sequence[AnyMarket], broker: str = "simulated"
) -> tuple[Path, SessionPlan] | None:
    """Return the session a restart goes on with: not sealed, at the same broker, and of the same
    candles or, where prices come over a socket, of the same session day."""
    folder = current_session(state_dir)
    if folder is None or read_seal(folder):
        return None
    plan = read_plan(folder)

    def candles(market: MarketPlan) -> tuple[str, str, str, int, int]:
        return (
            market.instrument,
            market.timeframe,
            market.sha256,
            market.rows,
            market.first_open_ns,
        )

    planned = [candles(market.plan()) for market in markets]
    if plan.broker != broker or [candles(market) for market in plan.markets] != planned:
        return None
    return folder, plan


def find_session(name: str, state_dir: Path) -> Path:
    """Return the folder of a recorded session: a path, an id, or "last" for the newest.

    Sessions of the demo lie under the state directory too and are found. Raises ReplayError.
    """
    path = Path(name)
    if (path / FILE_NAME).is_file():
        return path
    found = sorted(state_dir.rglob(f"{_SESSIONS}/*/{FILE_NAME}"), key=lambda file: file.parent.name)
    folders = {file.parent.name: file.parent for file in found}
    if name == "last" and folders:
        return folders[max(folders)]
    if name in folders:
        return folders[name]
    known = ", ".join(list(folders)[-5:]) or "none"
    raise ReplayError(f"no session {name!r} under {state_dir}: the newest there are {known}")
