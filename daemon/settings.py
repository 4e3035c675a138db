"""config/*.yaml and the environment as one frozen Settings, composed from each part's own type.

What a setting means stands with its owner: the actors' in actors/policies.py, the model's in
hrm/config.py, the backend's in backend_settings.py, the older sections in existing_settings.py.
Here is only what the daemon itself reads, where values come from, and which combinations cannot be.
"""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)

from actors.instruments import (
    Instrument,
    UnknownInstrument,
)
from actors.policies import (
    ComplexitySettings,
    EventSettings,
    ExecutionSettings,
    FeedSettings,
    ReasoningSettings,
    RiskLimits,
)
from actors.session import SessionCalendar
from daemon import existing_settings as existing
from daemon.backend_settings import BackendSettings
from daemon.config_files import (
    Document,
    Location,
    Problems,
    dotted,
    overrides_from,
    read_document,
    shown,
    validated,
)
from daemon.errors import ConfigError
from daemon.event_rules import events_by_rule, horizon_problems
from daemon.market_files import (
    EVENTS_FILE,
    INSTRUMENTS_FILE,
    SESSIONS_FILE,
    InstrumentsFile,
    read_charges,
    read_coefficients,
    read_events,
    read_instruments,
    read_sessions,
)
from hrm.config import HRMConfig
from hrm.features import VOLATILITY_BARS

SETTINGS_FILE: Final = "settings.yaml"

ENVIRONMENT_PREFIX: Final = "HRM_TRADER"
CONFIG_DIR_VARIABLE: Final = "HRM_TRADER_CONFIG_DIR"
SECRET_VARIABLES: Final[Mapping[str, str]] = {
    "jwt_secret": "JWT_SECRET",
    "fyers_app_id": "FYERS_APP_ID",
}

WRITTEN_ELSEWHERE: Final[Mapping[Location, Location]] = {
    ("risk_limits", "initial_capital"): ("environment", "initial_capital"),
    ("risk_limits", "brokerage_entry"): ("trading", "brokerage_entry"),
    ("execution", "brokerage_entry"): ("trading", "brokerage_entry"),
    ("execution", "brokerage_exit"): ("trading", "brokerage_exit"),
    ("execution", "risk_multiplier"): ("risk_management", "risk_multiplier"),
    ("execution", "reward_multiplier"): ("risk_management", "reward_multiplier"),
    ("complexity", "atr_period"): ("feature_generation", "atr_period"),
}
"""Values an actor needs from another section: written once, there, and copied here."""

_Read = TypeVar("_Read")
_URL_SCHEMES: Final = ("redis", "rediss", "unix")


class DaemonSettings(BaseModel):
    """Refuse unknown keys and later changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class BusSettings(DaemonSettings):
    """Say which message server carries the bus, and how much it keeps."""

    url: str | None = None
    """redis://, rediss:// or unix:// of a server; None: the bundled one, started by the daemon."""
    max_memory_mib: int = Field(default=512, ge=32, le=65_536)
    """Memory of the bundled server; at the limit it refuses writes, and trading holds."""
    retain_entries: int = Field(default=200_000, ge=1_000, le=50_000_000)
    """Entries kept of each stream after all readers have handled them."""
    block_ms: int = Field(default=200, ge=1, le=500)
    """Longest wait of one read; a stop or a lost server is noticed this late."""
    batch_entries: int = Field(default=128, ge=1, le=10_000)
    """Most entries handled between two commits."""

    @field_validator("url")
    @classmethod
    def _url_names_a_server(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in _URL_SCHEMES or not (parts.hostname or parts.path.strip("/")):
            raise ValueError(
                "must be redis://host:port/0, rediss://host:port/0 or unix:///path/to/socket, "
                "or null for the bundled server"
            )
        return url


class BrokerSettings(DaemonSettings):
    """Say whether orders may cost real money, and how they reach the broker."""

    allow_real_orders: bool = False
    """Let `run --broker fyers` trade at the real broker; off, it is refused."""
    transport: Literal["own", "sdk"] = "own"
    """What makes the REST calls of a session: our own client, or the official SDK. Sockets are
    always ours."""


class SessionSettings(DaemonSettings):
    """Say where a trading session keeps its state and how it starts."""

    state_dir: Path = Path("var")
    """Folder for journal, outbox, kill latch and the bundled server's files, from where the daemon
    was started; one daemon per folder."""
    model_dir: Path = Path("models")
    """Folder of the manifest and the weights that it lists."""
    start_halted: bool = True
    """Begin with the kill switch engaged, so that a person releases it; the demo releases it."""


class NewsRule(DaemonSettings):
    """Say how much an item weighs whose title has one of the words."""

    words: tuple[str, ...] = Field(min_length=1, max_length=50)
    """Words or phrases, found as whole words in any case."""
    impact: float = Field(gt=0.0, le=1.0)
    """Weight of the item when it is published."""
    instruments: tuple[str, ...] = ()
    """Symbols that it concerns; none: the whole market."""


class NewsSettings(DaemonSettings):
    """Say where unscheduled news are read, and how much of it."""

    url: str | None = None
    """Address of the feed, https, or http on this machine; None: no news are read."""
    format: Literal["rss", "json"] = "rss"
    """rss also means Atom; json is JSON Feed, where items may have impact and instruments."""
    poll_seconds: float = Field(default=60.0, ge=1.0, le=3600.0)
    """Real time between two readings; after failures it doubles, up to a quarter of an hour."""
    timeout_seconds: float = Field(default=10.0, gt=0.0, le=60.0)
    """Real time that one reading may take."""
    max_bytes: int = Field(default=262_144, ge=1_024, le=4_194_304)
    """Size of a document above which it is refused."""
    max_items: int = Field(default=100, ge=1, le=1_000)
    """Most entries looked at in one document; feeds have the newest first."""
    rules: tuple[NewsRule, ...] = Field(default=(), max_length=100)
    """The first one that fits an item counts; an item that none fits has no weight."""

    @field_validator("url")
    @classmethod
    def _url_can_be_trusted(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("must have no user or password: settings are written to recordings")
        is_local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and is_local)
        ):
            raise ValueError("must be https://host/path, or http:// on this machine, or null")
        return url


class Secrets(DaemonSettings):
    """Hold what only the environment may say. Never written to a file, a log or a report."""

    jwt_secret: SecretStr | None = None  # signs the session cookie of the backend
    fyers_app_id: SecretStr | None = None  # broker application, where no cookie names one


class Settings(DaemonSettings):
    """All settings, by section of settings.yaml, in the order of that file."""

    training_sequence: existing.TrainingSequence = existing.TrainingSequence()
    environment: existing.EnvironmentSection = existing.EnvironmentSection()
    model: existing.ModelSection = existing.ModelSection()
    risk_management: existing.RiskManagementSection = existing.RiskManagementSection()
    trading: existing.TradingSection = existing.TradingSection()
    training_params: existing.TrainingParameters = existing.TrainingParameters()
    progression_rules: existing.ProgressionRules = existing.ProgressionRules()
    monitoring: existing.MonitoringSection = existing.MonitoringSection()
    model_management: existing.ModelManagement = existing.ModelManagement()
    testing_overrides: existing.TestingOverrides = existing.TestingOverrides()
    feature_generation: existing.FeatureGeneration = existing.FeatureGeneration()
    paths: existing.PathsSection = existing.PathsSection()
    data_processing: existing.DataProcessing = existing.DataProcessing()
    logging: existing.LoggingSection = existing.LoggingSection()
    performance: existing.PerformanceSection = existing.PerformanceSection()
    validation: existing.ValidationSection = existing.ValidationSection()
    live_trading: existing.LiveTradingSection = existing.LiveTradingSection()
    hierarchical_reasoning_model: HRMConfig = HRMConfig()
    feed: FeedSettings = FeedSettings()
    complexity: ComplexitySettings = ComplexitySettings()
    reasoning: ReasoningSettings = ReasoningSettings()
    risk_limits: RiskLimits = RiskLimits()
    execution: ExecutionSettings = ExecutionSettings()
    news: NewsSettings = NewsSettings()
    session: SessionSettings = SessionSettings()
    bus: BusSettings = BusSettings()
    broker: BrokerSettings = BrokerSettings()
    backend: BackendSettings = BackendSettings()
    secrets: Secrets = Secrets()

    def effective(self) -> dict[str, Any]:
        """Return all settings as plain JSON values, secrets masked."""
        values = self.model_dump(mode="json")
        if self.bus.url is not None:
            values["bus"]["url"] = _without_password(self.bus.url)
        return values

    @property
    def settings_sha256(self) -> str:
        """Hash of the effective settings: a recording or a model names the settings it used."""
        text = json.dumps(self.effective(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def find_config_dir(
    config_dir: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Path:
    """Return the folder with settings.yaml: the one given, that of HRM_TRADER_CONFIG_DIR, ./config,
    or the installed one. A folder that is named must exist; there is no falling back from it."""
    named = config_dir or environment.get(CONFIG_DIR_VARIABLE)
    if named:
        folder = Path(named)
        if not _has_settings(folder):
            source = "the folder given" if config_dir else CONFIG_DIR_VARIABLE
            raise ConfigError(f"{source}, {folder}, has no {SETTINGS_FILE}: name a folder with one")
        return folder
    candidates = (
        Path("config"),
        Path(sysconfig.get_path("data"), "share", "hrm-trading-daemon", "config"),
        Path(__file__).resolve().parents[1] / "config",  # an editable install has no share folder
    )
    for folder in candidates:
        if _has_settings(folder):
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise ConfigError(
        f"no {SETTINGS_FILE} in {looked}: set {CONFIG_DIR_VARIABLE} to the folder that has it"
    )


def _has_settings(folder: Path) -> bool:
    try:
        return (folder / SETTINGS_FILE).is_file()
    except OSError:
        return False  # a folder we may not enter has none for us


def load_settings(
    config_dir: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    overrides: Mapping[str, Any] | None = None,
    demo: bool = False,
) -> Settings:
    """Read and check settings, instruments and sessions; raise one ConfigError for all problems.

    overrides: settings of the command line, `{"feed.speed": "max"}`; they win over the environment,
    which wins over the file. demo: the instruments of demo_instruments.yaml are known as well.
    feed.instruments comes back as symbols, however they were spelled.
    """
    folder = find_config_dir(config_dir, environment)
    problems = Problems()
    document = read_document(folder / SETTINGS_FILE, problems)
    _lay_over(document, environment, overrides or {})
    _refuse_misplaced(document, problems)
    for target, source in WRITTEN_ELSEWHERE.items():
        _copy(document.values, source, target)
    secrets = {key: environment.get(name) or None for key, name in SECRET_VARIABLES.items()}
    document.values["secrets"] = secrets
    settings = validated(Settings, document, problems, WRITTEN_ELSEWHERE)
    instruments = _attempt(lambda: read_instruments(folder, problems, demo=demo))
    sessions = _attempt(lambda: read_sessions(folder, problems))
    events = _attempt(lambda: read_events(folder, problems))
    coefficients = _attempt(lambda: read_coefficients(folder, problems))
    charges = _attempt(lambda: read_charges(folder, problems))
    if (
        instruments is None
        or sessions is None
        or events is None
        or coefficients is None
        or charges is None
    ):
        problems.raise_if_any()
        raise ConfigError(f"{folder} cannot be used")
    calendar = SessionCalendar(sessions)
    symbols = _check_combinations(settings, instruments, calendar, document, problems)
    _check_events(events, instruments, calendar, problems)
    for rule in settings.news.rules:
        for unknown in set(rule.instruments) - set(instruments.catalogue.symbols):
            text = f"news.rules names {unknown!r}, which is no symbol of {INSTRUMENTS_FILE}"
            problems.add(document.where(("news", "rules")), text)
    problems.raise_if_any()
    by_rule = events_by_rule(events, calendar, instruments.catalogue)
    all_events = events.model_copy(update={"events": events.events + by_rule})
    return settings.model_copy(
        update={
            "feed": settings.feed.model_copy(update={"instruments": symbols}),
            "complexity": settings.complexity.model_copy(
                update={"events": all_events, "coefficients": coefficients}
            ),
            "execution": settings.execution.model_copy(update={"charge_table": charges}),
        }
    )


def _check_events(
    events: EventSettings,
    instruments: InstrumentsFile,
    calendar: SessionCalendar,
    problems: Problems,
) -> None:
    symbols = set(instruments.catalogue.symbols)
    for event in events.events:
        for unknown in set(event.instruments) - symbols:
            text = (
                f"event {event.name!r} names {unknown!r}, which is no symbol of {INSTRUMENTS_FILE}"
            )
            problems.add(EVENTS_FILE, text)
    for unknown in set(events.covers_instruments) - symbols:
        text = f"covers_instruments names {unknown!r}, which is no symbol of {INSTRUMENTS_FILE}"
        problems.add(EVENTS_FILE, text)
    for text in horizon_problems(events, calendar, instruments.catalogue):
        problems.add(EVENTS_FILE, text)


def load_instruments(
    config_dir: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    *,
    demo: bool = False,
) -> InstrumentsFile:
    """Read and check instruments.yaml; with demo, the demo's instruments behind them."""
    problems = Problems()
    instruments = read_instruments(find_config_dir(config_dir, environment), problems, demo=demo)
    problems.raise_if_any()
    return instruments


def load_sessions(
    config_dir: Path | None = None, environment: Mapping[str, str] = os.environ
) -> SessionCalendar:
    """Read and check sessions.yaml."""
    problems = Problems()
    table = read_sessions(find_config_dir(config_dir, environment), problems)
    problems.raise_if_any()
    return SessionCalendar(table)


def _attempt(read: Callable[[], _Read]) -> _Read | None:
    """Read a file, or return None where it cannot be gone on with; its problems are collected."""
    try:
        return read()
    except ConfigError:
        return None


def _lay_over(
    document: Document, environment: Mapping[str, str], overrides: Mapping[str, Any]
) -> None:
    for location, (value, source) in overrides_from(environment, ENVIRONMENT_PREFIX).items():
        document.override(location, value, source)
    for key, value in overrides.items():
        document.override(tuple(key.split(".")), value, "command line")


def _refuse_misplaced(document: Document, problems: Problems) -> None:
    """Take out values that are written in the wrong place, and say where they belong."""
    if "secrets" in document.values:
        names = " and ".join(SECRET_VARIABLES.values())
        where = document.where(("secrets",))
        problems.add(where, f"secrets: remove it; set the environment variables {names}")
        del document.values["secrets"]
    for target, source in WRITTEN_ELSEWHERE.items():
        value = document.value(target)
        if document.remove(target):
            problems.add(
                document.where(target),
                f"{dotted(target)} = {shown(target, value)}: this value is written once, as "
                f"{dotted(source)}: set it there and remove it here",
            )


def _copy(values: dict[Any, Any], source: Location, target: Location) -> None:
    section = values.get(source[0])
    if isinstance(section, dict) and source[1] in section:
        into = values.setdefault(target[0], {})
        if isinstance(into, dict):
            into[target[1]] = section[source[1]]


def _check_combinations(
    settings: Settings,
    instruments: InstrumentsFile,
    calendar: SessionCalendar,
    document: Document,
    problems: Problems,
) -> tuple[str, ...]:
    """Report values that are each possible but not together; return the feed's symbols."""
    catalogue = instruments.catalogue
    symbols: list[str] = []
    for name in settings.feed.instruments:
        try:
            symbol = catalogue[name].symbol
        except UnknownInstrument as error:
            _report(document, problems, ("feed", "instruments"), str(error))
            continue
        if symbol in symbols:
            text = f"{name!r} is {symbol}, which is named already: remove one"
            _report(document, problems, ("feed", "instruments"), text)
        symbols.append(symbol)
    for location, text in (
        *_impossible_times(settings, instruments.timeframes),
        *_impossible_limits(settings),
    ):
        _report(document, problems, location, text)
    for text in _without_hours(catalogue, calendar.markets):
        problems.add(INSTRUMENTS_FILE, text)
    return tuple(symbols)


def _impossible_times(
    settings: Settings, timeframes: tuple[str, ...]
) -> Iterator[tuple[Location, str]]:
    if settings.feed.timeframe not in timeframes:
        yield (
            ("feed", "timeframe"),
            f"{settings.feed.timeframe!r} is not offered: use one of {', '.join(timeframes)}",
        )
    if settings.complexity.volatility_window != VOLATILITY_BARS:
        yield (
            ("complexity", "volatility_window"),
            (
                f"{settings.complexity.volatility_window} bars, but models are trained on "
                f"{VOLATILITY_BARS}: set it to {VOLATILITY_BARS}"
            ),
        )
    deadline_ms = settings.hierarchical_reasoning_model.performance.max_inference_time_ms
    if deadline_ms > settings.monitoring.latency_critical_ms:
        yield (
            ("hierarchical_reasoning_model", "performance", "max_inference_time_ms"),
            (
                f"{deadline_ms:g} ms lies above monitoring.latency_critical_ms "
                f"{settings.monitoring.latency_critical_ms:g}, so that every timely decision could "
                "raise a critical alert: lower one or raise the other"
            ),
        )


def _impossible_limits(settings: Settings) -> Iterator[tuple[Location, str]]:
    a_minute = settings.risk_limits.max_orders_per_minute
    possible = 60 * settings.execution.max_order_rate_per_second
    if a_minute > possible:
        yield (
            ("risk_limits", "max_orders_per_minute"),
            (
                f"{a_minute} can never be reached at execution.max_order_rate_per_second "
                f"{settings.execution.max_order_rate_per_second}: use at most {possible}"
            ),
        )
    if settings.risk_limits.brokerage_entry >= settings.risk_limits.initial_capital:
        yield (
            ("trading", "brokerage_entry"),
            (
                f"{settings.trading.brokerage_entry} uses up environment.initial_capital "
                f"{settings.environment.initial_capital}: no order could be paid for"
            ),
        )


def _without_hours(catalogue: Iterable[Instrument], markets: tuple[str, ...]) -> Iterator[str]:
    for instrument in catalogue:
        if instrument.session not in markets:
            yield (
                f"{instrument.symbol} trades in the session {instrument.session!r}, which "
                f"{SESSIONS_FILE} does not have: use one of {', '.join(markets)}"
            )


def _report(document: Document, problems: Problems, location: Location, text: str) -> None:
    problems.add(document.where(location), f"{dotted(location)}: {text}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:**********@{host}"))


def trading_indices_themselves(settings: Settings) -> Settings:
    """Return settings for a market without options: there an index is traded at its own price."""
    execution = settings.execution.model_copy(update={"trade_index_through": "index"})
    return settings.model_copy(update={"execution": execution})
