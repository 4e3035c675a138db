"""The rules that both buses share, without a bus."""

from builders import OPEN_NS, a_heartbeat, a_tick
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import AnyMessage
from daemon.bus import Entry, Envelope, Output, id_key
from daemon.delivery import (
    LARGEST_PART,
    HoldBack,
    OutputLedger,
    child_key,
    id_text,
    key_after,
    market_time_ns,
)


def an_entry(stream: str, key: tuple[int, int], message: AnyMessage | None = None) -> Entry:
    envelope = Envelope(
        source="edge",
        sequence=1,
        cause="",
        published_ns=7,
        cause_published_ns=0,
        origin_published_ns=0,
        message=message or a_tick(),
    )
    return Entry(stream, id_text(key), envelope)


def test_children_of_later_entries_stand_behind_those_of_earlier_ones() -> None:
    keys = [child_key((5, sequence), child) for sequence in range(3) for child in range(64)]

    assert keys == sorted(set(keys))


def test_a_child_whose_number_would_not_fit_moves_on_by_a_millisecond() -> None:
    assert child_key((5, LARGEST_PART // 64), 63) == (5, LARGEST_PART)
    assert child_key((5, LARGEST_PART // 64 + 1), 3) == (6, 3)


def test_the_id_after_the_last_of_a_millisecond_is_in_the_next() -> None:
    assert key_after((5, 1)) == (5, 2)
    assert key_after((5, LARGEST_PART)) == (6, 0)


def test_an_edge_with_its_clock_at_zero_still_gives_valid_ids() -> None:
    ledger = OutputLedger("edge", ["tick"], lambda: 0)

    planned = ledger.plan_edge([a_tick(), a_tick()])

    assert [item.key for item in planned] == [(1, 0), (1, 1)]


def test_a_plan_that_is_not_accepted_leaves_no_trace() -> None:
    ledger = OutputLedger("feed", ["tick"], lambda: 0)
    cause = an_entry("time", (5, 0))
    refused = ledger.plan_children([cause], [Output(0, a_tick())])

    again = ledger.plan_children([cause], [Output(0, a_tick())])

    assert again == refused
    assert ledger.published == 0


def test_an_input_without_origin_is_the_origin() -> None:
    ledger = OutputLedger("feed", ["tick"], lambda: 9)

    (planned,) = ledger.plan_children([an_entry("time", (5, 0))], [Output(0, a_tick())])

    assert planned.envelope.origin_published_ns == 7


def test_market_time_falls_back_to_the_real_clock_only_where_there_is_no_other() -> None:
    heartbeat = an_entry("heartbeat", (5, 0), a_heartbeat(at_ns=99))
    tick = an_entry("tick", (4, 0), a_tick(at_ns=OPEN_NS))

    assert market_time_ns([tick, heartbeat], 0) == OPEN_NS
    assert market_time_ns([heartbeat], OPEN_NS) == OPEN_NS
    assert market_time_ns([heartbeat], 0) == 99
    assert market_time_ns([], 5) == 5


@given(
    ids=st.lists(st.lists(st.integers(1, 60), max_size=25, unique=True), min_size=1, max_size=4),
    count=st.integers(1, 5),
    limit=st.integers(1, 7),
)
def test_entries_come_in_id_order_however_they_are_fetched(
    ids: list[list[int]], count: int, limit: int
) -> None:
    streams = {f"s{n}": [(ms, 0) for ms in sorted(column)] for n, column in enumerate(ids)}
    everything = sorted(key for keys in streams.values() for key in keys)
    held = HoldBack(list(streams))
    taken: list[tuple[int, int]] = []

    while any(streams.values()) or held:
        for stream in held.begin_fetch():
            fetched, streams[stream] = streams[stream][:count], streams[stream][count:]
            held.add(stream, [an_entry(stream, key) for key in fetched], len(fetched) == count)
        batch = held.take(limit)
        assert len(batch) <= limit
        taken.extend(id_key(entry.id) for entry in batch)

    assert taken == everything


@given(
    begun=st.lists(st.integers(0, 2), max_size=12),
    rounds=st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.integers(1, 5))),
    count=st.integers(1, 6),
)
def test_what_is_published_between_two_fetches_keeps_its_order(
    begun: list[int], rounds: list[tuple[list[int], int]], count: int
) -> None:
    """One writer publishes to three streams, ids rising, while a reader catches up with it."""
    waiting: dict[str, list[tuple[int, int]]] = {f"s{number}": [] for number in range(3)}
    held = HoldBack(list(waiting))
    published: list[tuple[int, int]] = []
    taken: list[tuple[int, int]] = []

    def publish(streams: list[int]) -> None:
        for number in streams:
            published.append((len(published) + 1, 0))
            waiting[f"s{number}"].append(published[-1])

    def read(limit: int) -> None:
        for stream in held.begin_fetch():
            fetched, waiting[stream] = waiting[stream][:count], waiting[stream][count:]
            held.add(stream, [an_entry(stream, key) for key in fetched], len(fetched) == count)
        taken.extend(id_key(entry.id) for entry in held.take(limit))

    publish(begun)
    for streams, limit in rounds:
        read(limit)
        publish(streams)
    while len(taken) < len(published):
        read(3)

    assert taken == published
