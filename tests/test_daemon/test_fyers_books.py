from decimal import Decimal
from typing import Any

import pytest
from builders import an_order
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import ExecutionReport
from daemon.brokers.fyers_books import (
    LATE,
    MOVES,
    FyersBooks,
    FyersStatus,
    OrderRow,
    TradeRow,
    own_tag,
)

ORDER = an_order(75)
SYMBOL = "NSE:NIFTY26NOVFUT"


def a_row(status: int, filled: int = 0, **fields: Any) -> OrderRow:
    row: dict[str, Any] = {
        "id": "26112600000001",
        "symbol": SYMBOL,
        "side": 1,
        "qty": 75,
        "filledQty": filled,
        "status": status,
        "orderTag": "1:order1",
        "source": "ITS",
        "message": "",
        "orderDateTime": "26-Nov-2026 10:15:00",
    }
    return OrderRow.read(row | fields)


def a_trade(number: int, quantity: int, **fields: Any) -> TradeRow:
    row: dict[str, Any] = {
        "tradeNumber": f"26112600000001-{number}",
        "orderNumber": "26112600000001",
        "symbol": SYMBOL,
        "side": 1,
        "tradedQty": quantity,
        "tradePrice": 25000.1,
        "orderTag": "1:order1",
        "orderDateTime": "26-Nov-2026 10:15:01",
    }
    return TradeRow.read(row | fields)


def books(problems: list[str] | None = None) -> FyersBooks:
    told = problems if problems is not None else []
    return FyersBooks({"order1": ORDER}.get, {"Nifty": SYMBOL}, told.append)


@pytest.mark.parametrize("before", list(FyersStatus))
@pytest.mark.parametrize("after", list(FyersStatus))
def test_every_pair_of_states_is_a_move_or_late_or_refused_and_reported(
    before: FyersStatus, after: FyersStatus
) -> None:
    problems: list[str] = []
    book = books(problems)
    book.take_order(a_row(before))

    reports = book.take_order(a_row(after))

    is_move = before == after or after in MOVES[before]
    is_late = after in LATE[before]
    assert bool(problems) is not (is_move or is_late)
    if not is_move:
        assert reports == []


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (5, "RMS: market is closed for NSE:SBIN-EQ", "retryable"),
        (5, "RMS: Margin Shortfall", "permanent"),
        (1, "", None),
    ],
)
def test_a_rejected_order_says_of_which_class_its_reject_is(
    status: int, message: str, kind: str | None
) -> None:
    (report,) = books().take_order(a_row(status, message=message))

    assert report.reject_kind == kind


def test_a_cancelled_order_may_have_fills_and_claims_them() -> None:
    (report,) = books().take_order(a_row(1, filled=25))

    assert (report.status, report.cumulative_quantity) == ("cancelled", 25)


def test_a_fill_told_after_a_cancel_ends_nothing_and_is_put_before_a_person() -> None:
    problems: list[str] = []
    book = books(problems)
    book.take_order(a_row(1))

    assert book.take_order(a_row(2, filled=75)) == []
    assert problems == [
        "order 26112600000001 (order1) cannot go from CANCELLED to TRADED: it stays CANCELLED"
    ]


def test_prices_become_decimals_exactly_and_times_are_of_india() -> None:
    (report,) = books().take_trade(a_trade(1, 25))

    assert report.last_price == Decimal("25000.1")
    assert report.event_ns == 1_795_668_301_000_000_000


@given(
    facts=st.permutations(
        [a_row(4), a_row(6), a_row(6, 25), a_row(2, 75), a_trade(1, 25), a_trade(2, 50)] * 2
    )
)
def test_in_whatever_order_rows_come_each_fill_is_told_once(facts: list[Any]) -> None:
    problems: list[str] = []
    book = books(problems)

    told: list[ExecutionReport] = []
    for fact in facts:
        told += book.take_order(fact) if isinstance(fact, OrderRow) else book.take_trade(fact)

    assert sorted(report.last_quantity for report in told if report.last_quantity) == [25, 50]
    assert [report.status for report in told].count("filled") == 1
    assert len({report.execution_id for report in told}) == len(told)
    assert problems == []


def test_a_second_order_under_one_tag_is_reported() -> None:
    problems: list[str] = []
    book = books(problems)
    book.take_order(a_row(6))

    book.take_order(a_row(6, id="26112600000002"))

    assert problems == [
        "tag order1 stands on two orders of the broker: 26112600000001 and 26112600000002"
    ]


def test_an_order_that_was_changed_elsewhere_is_reported() -> None:
    problems: list[str] = []

    books(problems).take_order(a_row(6, qty=150))

    assert "somebody else has changed it" in problems[0]


def test_a_trade_of_a_stranger_in_what_is_traded_here_comes_under_an_outside_id() -> None:
    book = books()
    book.take_order(a_row(2, 75, orderTag="2:Untagged", source="A"))

    (report,) = book.take_trade(a_trade(1, 75, orderTag="2:Untagged", side=-1))

    assert report.client_order_id == "outside26112600000001"
    assert (report.side, report.last_quantity) == ("sell", 75)


@pytest.mark.parametrize(
    ("shown", "tag"),
    [("1:order1", "order1"), ("2:Untagged", ""), ("1:", ""), (None, ""), ("1:a-b", "")],
)
def test_only_a_tag_that_a_user_gave_counts(shown: object, tag: str) -> None:
    assert own_tag(shown) == tag


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"status": 9}, "9"), ({"qty": "75"}, "qty"), ({"side": 0}, "side"), ({"id": ""}, "id")],
)
def test_a_row_that_cannot_be_read_is_refused_by_name(fields: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        a_row(fields.pop("status", 6), **fields)
