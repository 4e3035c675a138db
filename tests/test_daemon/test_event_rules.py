"""Event rules: expiries and holidays of the days covered, from the shipped calendar."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import CONFIG

from actors.events import EventCalendar
from actors.policies import EventSettings, ScheduledEvent
from daemon.errors import ConfigError
from daemon.event_rules import events_by_rule, horizon_problems
from daemon.settings import load_instruments, load_sessions, load_settings

CALENDAR = load_sessions(CONFIG, {})
INSTRUMENTS = load_instruments(CONFIG, {}).catalogue


def rules(**fields: Any) -> EventSettings:
    given: dict[str, Any] = {
        "covers_from": date(2026, 11, 2),
        "covers_until": date(2026, 12, 31),
        "covers_instruments": ("Nifty",),
    }
    return EventSettings(**(given | fields))


def found(**fields: Any) -> tuple[ScheduledEvent, ...]:
    return events_by_rule(rules(**fields), CALENDAR, INSTRUMENTS)


def days(events: tuple[ScheduledEvent, ...]) -> list[str]:
    return [event.at.date().isoformat() for event in events]


def test_expiries_fall_on_the_trading_day_before_a_holiday() -> None:
    nifty = found(expiry_weight=0.5, covers_until=date(2026, 12, 1))

    assert days(nifty) == ["2026-11-03", "2026-11-09", "2026-11-17", "2026-11-23", "2026-12-01"]
    assert {event.weight for event in nifty} == {0.5}
    assert nifty[0].at == datetime(2026, 11, 3, 10, 10, tzinfo=UTC)  # 15:40 in Mumbai


def test_an_index_with_monthly_contracts_expires_once_a_month_and_one_of_bse_on_thursday() -> None:
    monthly = found(expiry_weight=0.5, covers_instruments=("Bank_Nifty",))
    weekly = found(expiry_weight=0.5, covers_instruments=("Sensex",))

    assert days(monthly) == ["2026-11-23", "2026-12-29"]
    assert {event.at.strftime("%a") for event in weekly} == {"Thu"}


def test_the_close_of_an_expiry_follows_the_hours_of_its_day() -> None:
    first, second = found(
        expiry_weight=0.5, covers_from=date(2026, 7, 28), covers_until=date(2026, 8, 4)
    )

    assert (first.at.hour, first.at.minute) == (10, 0)  # 15:30 before the closing auction came
    assert (second.at.hour, second.at.minute) == (10, 10)


def test_a_holiday_weighs_at_the_close_of_the_session_before_it() -> None:
    events = found(holiday_weight=0.2)

    assert days(events) == ["2026-11-09", "2026-11-23", "2026-12-24"]
    assert [event.name for event in events][-1] == "before Christmas"


def test_nothing_follows_by_rule_without_a_weight_or_without_days() -> None:
    assert found() == ()
    assert found(expiry_weight=1.0, covers_from=None, covers_until=None) == ()


def test_days_beyond_the_known_holidays_cannot_be_covered() -> None:
    (problem,) = horizon_problems(rules(covers_until=date(2027, 1, 31)), CALENDAR, INSTRUMENTS)

    assert "covers_until 2027-01-31 is after 2026-12-31" in problem
    assert "Nifty" in problem
    assert horizon_problems(rules(), CALENDAR, INSTRUMENTS) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"covers_until: 2026-12-31": "covers_until: 2027-03-31"}, "is after 2026-12-31"),
        ({"[Nifty, Bank_Nifty": "[Nifti, Bank_Nifty"}, "covers_instruments names 'Nifti'"),
    ],
)
def test_a_file_that_claims_too_much_is_refused_at_the_start(
    tmp_path: Path, changed: Mapping[str, str], message: str
) -> None:
    for path in CONFIG.iterdir():
        text = path.read_text(encoding="utf-8")
        for old, new in changed.items():
            text = text.replace(old, new) if path.name == "events.yaml" else text
        (tmp_path / path.name).write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=message):
        load_settings(tmp_path, {})


def shipped(instrument: str, *when: int) -> float | None:
    events = EventCalendar(load_settings(CONFIG, {}).complexity.events)
    return events.impact(instrument, int(datetime(*when, tzinfo=UTC).timestamp()) * 10**9)  # type: ignore[misc, arg-type]


def test_the_shipped_list_knows_a_quiet_day_a_policy_day_and_an_expiry() -> None:
    assert shipped("Nifty", 2026, 12, 4, 4, 30) == pytest.approx(1.0)  # 10:00 in Mumbai
    quiet = shipped("Nifty", 2026, 12, 17, 6, 0)
    assert quiet is not None
    assert quiet < 0.01
    assert shipped("Nifty", 2026, 12, 15, 10, 10) == pytest.approx(0.5, abs=0.01)


def test_the_shipped_list_claims_nothing_beyond_its_days_and_instruments() -> None:
    assert shipped("Nifty", 2026, 12, 31, 6, 0) is not None
    assert shipped("Nifty", 2027, 1, 1, 6, 0) is None
    assert shipped("Nifty", 2026, 3, 31, 6, 0) is None
    assert shipped("Reliance", 2026, 12, 4, 4, 30) is None  # nobody entered its results


def test_every_listed_policy_day_is_a_trading_day() -> None:
    for event in load_settings(CONFIG, {}).complexity.events.events:
        if event.kind in {"policy", "budget", "election"} and event.at.year < 2027:
            assert CALENDAR.phase("NSE", event.at_ns) != "closed", event
