"""Forecasts are judged from the first live bar of a session on, by those of its warm-up."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

from builders import OPEN_NS, a_calendar, a_catalogue, a_tick, a_time, outputs_of

from actors.complexity import MarketComplexityActor
from actors.forecast import FEATURES
from actors.market_feed import MarketFeedActor
from actors.messages import Alert, Bar, MarketContext, Message, PastBar
from actors.monitoring import MonitoringActor
from actors.policies import (
    ComplexityCoefficients,
    ComplexitySettings,
    FeedSettings,
    ForecastCoefficients,
    MonitoringSettings,
)

BAR_NS = 300_000_000_000
DAY_NS = 86_400_000_000_000
SESSION_BARS = 75
WARM_UP_BARS = FeedSettings().warm_up_bars


class Session:
    """The actors of one session: none remembers another, since the bus forgets it."""

    def __init__(self, intercept: float) -> None:
        """intercept: of the forecast, which says the same of every window."""
        forecast = ForecastCoefficients(
            intercept=intercept,
            weights=(0.0,) * len(FEATURES),
            fitted_from="2023-01-02",
            fitted_until="2023-01-31",
        )
        coefficients = ComplexityCoefficients(forecasts={"5": forecast})
        settings = FeedSettings(stale_after_seconds=3600)
        self.feed = MarketFeedActor(settings, a_catalogue(), a_calendar(), {"Nifty": "5"})
        self.complexity = MarketComplexityActor(ComplexitySettings(coefficients=coefficients))
        self.monitoring = MonitoringActor(MonitoringSettings())
        self.contexts: list[MarketContext] = []

    def alerts(self, *messages: Message) -> list[Alert]:
        """Return what monitoring says while the messages go through the feed and complexity."""
        bars = [one for one in outputs_of(self.feed, *messages) if isinstance(one, Bar)]
        contexts = outputs_of(self.complexity, *bars)
        self.contexts += [one for one in contexts if isinstance(one, MarketContext)]
        return [one for one in outputs_of(self.monitoring, *contexts) if isinstance(one, Alert)]


def opens_before(end_ns: int) -> Iterator[int]:
    """Yield the bars of all sessions since January that open before an instant."""
    for day in range(-76, (end_ns - OPEN_NS) // DAY_NS + 1):
        open_ns = OPEN_NS + day * DAY_NS
        if a_calendar().phase("NSE", open_ns) != "closed":
            opens = (open_ns + number * BAR_NS for number in range(SESSION_BARS))
            yield from (one for one in opens if one < end_ns)


def history(end_ns: int) -> list[PastBar]:
    """Return a warm-up before an instant; days move little and much in turn, noons less."""
    candles = []
    for open_ns in list(opens_before(end_ns))[-WARM_UP_BARS:]:
        day, at = divmod(open_ns - OPEN_NS, DAY_NS)
        reach = (20 + 15 * (day % 2)) * (1.2 + math.cos(at / (SESSION_BARS * BAR_NS) * 6.28))
        price, half = Decimal(22000), Decimal(round(reach, 2)) / 2
        candles.append(
            PastBar(
                instrument="Nifty",
                timeframe="5",
                open=price,
                high=price + half,
                low=price - half,
                close=price,
                volume=0,
                open_ns=open_ns,
                told_ns=end_ns,
            )
        )
    return candles


def live_bar(open_ns: int) -> list[Message]:
    return [a_tick("22000", open_ns), a_tick("22010", open_ns + 1), a_time(open_ns + BAR_NS)]


def test_a_session_that_begins_anew_judges_the_forecasts_of_its_warm_up() -> None:
    for day in (1, 2):  # two sessions, of which the second knows nothing of the first
        open_ns, session = OPEN_NS + day * DAY_NS, Session(intercept=1.0)

        in_warm_up = session.alerts(*history(open_ns))
        at_the_first_bar = session.alerts(*live_bar(open_ns))
        later = session.alerts(*live_bar(open_ns + BAR_NS))

        assert datetime.fromtimestamp(open_ns / 1e9, UTC).weekday() == day
        checked = [one for one in session.contexts if one.checked is not None]
        assert sum(one.bar.origin == "backfilled" for one in checked) >= 500
        assert (in_warm_up, later) == ([], [])
        [alert] = at_the_first_bar
        assert (alert.severity, alert.runbook) == ("warning", "Poor forecasts")
        assert "of the last 500 forecasts came true" in alert.text


def test_a_forecast_that_was_good_in_the_warm_up_is_no_news() -> None:
    open_ns, session = OPEN_NS + DAY_NS, Session(intercept=1.0)
    session.monitoring = MonitoringActor(MonitoringSettings(min_forecast_accuracy=0.2))

    said = session.alerts(*history(open_ns), *live_bar(open_ns))

    assert said == []
    assert session.monitoring.forecasts["Nifty 5"].count == 500
