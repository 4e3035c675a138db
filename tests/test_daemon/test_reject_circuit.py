import pytest

from actors.messages import RejectKind
from daemon.reject_circuit import RejectCircuit, reject_kind

SECOND_NS = 1_000_000_000


def rejected_three_times(kind: RejectKind) -> RejectCircuit:
    circuit = RejectCircuit()
    for rupees in (100, 2000, 31.5):
        circuit.rejected("Nifty", kind, f"RMS: Margin Shortfall: required {rupees}", 0)
    return circuit


def test_the_third_identical_reject_opens_whatever_numbers_it_names() -> None:
    circuit = RejectCircuit()

    opened = [
        circuit.rejected("Nifty", "permanent", f"RMS: Margin Shortfall: required {n}", 0)
        for n in (1, 22, 333)
    ]

    assert opened[:2] == [None, None]
    assert "3 identical rejects (permanent), no entries in Nifty for 900 s" in str(opened[2])
    assert circuit.refusal("Nifty", 0) is not None
    assert circuit.refusal("Bank_Nifty", 0) is None


@pytest.mark.parametrize("kind", ["auth", "rate"])
def test_rejects_of_login_and_pace_stop_every_instrument(kind: RejectKind) -> None:
    assert rejected_three_times(kind).refusal("Bank_Nifty", 0) is not None


def test_an_order_that_was_not_rejected_or_another_reject_begins_the_count_anew() -> None:
    circuit = RejectCircuit()
    circuit.rejected("Nifty", "permanent", "lot", 0)
    circuit.rejected("Nifty", "permanent", "lot", 0)
    circuit.confirmed("Nifty")
    circuit.rejected("Nifty", "permanent", "lot", 0)
    circuit.rejected("Nifty", "permanent", "tick", 0)

    assert circuit.rejected("Nifty", "permanent", "lot", 0) is None
    assert circuit.refusal("Nifty", 0) is None


def test_after_its_time_one_try_is_let_through_and_a_fourth_reject_closes_again() -> None:
    circuit = rejected_three_times("retryable")

    assert circuit.refusal("Nifty", 59 * SECOND_NS) is not None
    assert circuit.refusal("Nifty", 60 * SECOND_NS) is None
    reason = "RMS: Margin Shortfall: required 1"
    again = circuit.rejected("Nifty", "retryable", reason, 60 * SECOND_NS)
    assert again is not None
    assert circuit.openings == 2
    assert circuit.rejects == {"retryable": 4}


def test_rejects_while_it_is_open_keep_it_open_and_are_not_told_again() -> None:
    circuit = rejected_three_times("retryable")

    again = circuit.rejected(
        "Nifty", "retryable", "RMS: Margin Shortfall: required 1", 50 * SECOND_NS
    )

    assert again is None
    assert circuit.openings == 1
    assert circuit.refusal("Nifty", 109 * SECOND_NS) is not None


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (-16, "Could not authenticate the user", "auth"),
        (-429, "request limit reached", "rate"),
        (-99, "RMS: market is closed for NSE:SBIN-EQ", "retryable"),
        (-50, "Quantity 3 is not a multiple of lot size 75", "permanent"),
    ],
)
def test_code_and_text_of_a_reply_say_the_class_of_a_reject(
    code: int, text: str, kind: str
) -> None:
    assert reject_kind(code, text) == kind
