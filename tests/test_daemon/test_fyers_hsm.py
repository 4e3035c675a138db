"""The codec of the data socket against hand-built frames and the simulator's own writer."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.brokers.fyers import hsm
from daemon.brokers.fyers_simulator import frames

SNAPSHOTS = bytes.fromhex(
    "00d4060000000100025300650e73667c6e73655f636d7c333034351500013e840012d6876b0342636b034263000000"
    "64000000c800013e7f00013e8900000005000003e70000037800013e8e8000000000013c9000014078800000008000"
    "000000011eaa00015e5e00013e2000013dbc0000000102066e73655f636d0433303435075342494e2d455153006612"
    "69667c6e73655f636d7c4e696674792035300600266f1a00266e526b0342630026710e00266d2600266eb600000001"
    "02066e73655f636d084e69667479203530084e69667479203530"
)
DEPTH = bytes.fromhex(
    "00ab060000000200015300670e64707c6e73655f636d7c333034351e00013e7f00013e7a00013e7500013e7000013e"
    "6b00013e8900013e8e00013e9300013e9800013e9d0000000a000000140000001e0000002800000032000000140000"
    "00280000003c0000005000000064000000010000000200000003000000040000000500000006000000070000000800"
    "0000090000000a0000000102066e73655f636d0433303435075342494e2d4551"
)
UPDATES = bytes.fromhex(
    "007b060000000300025500651500013e890012d68c6b0342646b034264800000008000000080000000800000008000"
    "0000800000008000000080000000800000008000000080000000800000008000000080000000800000008000000080"
    "0000005500660600266f79800000006b034264800000008000000080000000"
)
SHORT = bytes.fromhex("000f060000000400015500650100013e8e")
LITE = bytes.fromhex("0015060000000500024c006500013e934c006600266f7e")
WRAPPED = bytes.fromhex("0013060000000600015500650200013e98b2d05e00")
NAMES = ("nse_cm", "3045", "SBIN-EQ")


def data(decoder: hsm.Decoder, frame: bytes) -> hsm.Data:
    decoded = decoder.decode(frame)
    assert isinstance(decoded, hsm.Data)
    return decoded


def seeded() -> hsm.Decoder:
    decoder = hsm.Decoder()
    data(decoder, SNAPSHOTS)
    return decoder


@pytest.mark.parametrize(
    ("written", "golden"),
    [
        (
            hsm.authenticate("00112233445566778899aabbccddeeff", "Sim-1.0"),
            (
                "00370104010020303031313232333334343535363637373838393961616262636364646565666602000150"
                "0300010104000753696d2d312e30"
            ),
        ),
        (hsm.mode([11], is_lite=False), "00110c02010008000000000000080002000146"),
        (hsm.mode([11], is_lite=True), "00110c0201000800000000000008000200014c"),
        (
            *hsm.subscribe(["sf|nse_cm|3045", "if|nse_cm|Nifty 50"], 11),
            (
                "002d040201002400020e73667c6e73655f636d7c333034351269667c6e73655f636d7c4e696674792035"
                "300200010b"
            ),
        ),
        (
            *hsm.unsubscribe(["sf|nse_cm|3045"], 11),
            "001a050201001100010e73667c6e73655f636d7c333034350200010b",
        ),
        (hsm.acknowledge(5), "0009030101000400000005"),
        (hsm.pause([11]), "000d07010100080000000000000800"),
        (hsm.resume([11]), "000d08010100080000000000000800"),
        (hsm.PING, "00010b"),
    ],
)
def test_requests_are_written_as_the_golden_frames(written: bytes, golden: str) -> None:
    assert written.hex() == golden


@pytest.mark.parametrize(
    ("frame", "meaning"),
    [
        ("000d01020100014b02000400000019", hsm.Answer(1, is_accepted=True, ack_every=25)),
        ("000d01020100014e02000400000000", hsm.Answer(1, is_accepted=False)),
        ("000604010100014b", hsm.Answer(4, is_accepted=True)),
        ("000604010100014e", hsm.Answer(4, is_accepted=False)),
        ("000605010100014b", hsm.Answer(5, is_accepted=True)),
        ("000607010100014b", hsm.Answer(7, is_accepted=True)),
        ("000608010100014b", hsm.Answer(8, is_accepted=True)),
        ("00060c010100014b", hsm.Answer(12, is_accepted=True)),
        (
            "002533030100040000c73902001553796d626f6c206c696d697420657863656564656403000104",
            hsm.Notice(51001, "Symbol limit exceeded", 4),
        ),
        ("00020d00", None),
    ],
)
def test_answers_are_read_as_the_golden_frames_mean(frame: str, meaning: object) -> None:
    assert hsm.Decoder().decode(bytes.fromhex(frame)) == meaning


def test_snapshots_carry_names_scales_and_all_values() -> None:
    stock, index = data(hsm.Decoder(), SNAPSHOTS).records

    assert (stock.topic.name, stock.topic.symbol) == ("sf|nse_cm|3045", "SBIN-EQ")
    assert stock.topic.price(stock.values[hsm.LAST_PRICE]) == Decimal("815.4")
    assert stock.topic.price(stock.values[hsm.BID]) == Decimal("815.35")
    assert stock.topic.price(stock.values[hsm.UPPER_CIRCUIT]) == Decimal("896.94")
    assert stock.values[hsm.VOLUME] == 1_234_567
    assert hsm.count_of(stock.values[hsm.OPEN_INTEREST]) is None
    assert (index.topic.kind, index.topic.name) == ("if", "if|nse_cm|Nifty 50")
    assert index.topic.price(index.values[hsm.INDEX_VALUE]) == Decimal("25188.1")


def test_an_update_changes_only_what_it_carries() -> None:
    before, _ = data(decoder := hsm.Decoder(), SNAPSHOTS).records
    after, index = data(decoder, UPDATES).records

    assert after.values[:4] == (81545, 1_234_572, 1_795_375_716, 1_795_375_716)
    assert after.values[4:] == before.values[4:]
    assert index.topic.price(index.values[0]) == Decimal("25189.05")


def test_a_short_update_counts_from_the_first_field() -> None:
    (record,) = data(seeded(), SHORT).records

    assert record.topic.price(record.values[0]) == Decimal("815.5")
    assert record.values[hsm.VOLUME] == 1_234_567


def test_a_lite_record_is_the_last_price_alone() -> None:
    stock, index = data(seeded(), LITE).records

    assert stock.topic.price(stock.values[0]) == Decimal("815.55")
    assert index.topic.price(index.values[0]) == Decimal("25189.1")


def test_a_count_beyond_31_bits_is_unwrapped() -> None:
    (record,) = data(seeded(), WRAPPED).records

    assert hsm.count_of(record.values[hsm.VOLUME]) == 3_000_000_000


def test_depth_gives_five_levels_a_side() -> None:
    (record,) = data(hsm.Decoder(), DEPTH).records

    bids = record.topic.levels(record.values, bids=True)
    asks = record.topic.levels(record.values, bids=False)
    assert bids[0] == (Decimal("815.35"), 10, 1)
    assert bids[4] == (Decimal("815.15"), 50, 5)
    assert asks[0] == (Decimal("815.45"), 20, 6)
    assert asks[4] == (Decimal("815.65"), 100, 10)


def test_an_unknown_topic_id_costs_only_its_own_record() -> None:
    frame = frames.data_frame(7, [frames.lite(9, 1), frames.update(8, [1, 2]), LITE[9:16]])

    decoded = data(seeded(), frame)

    assert [record.values[0] for record in decoded.records] == [81555]
    assert (decoded.unresolved, decoded.problem) == (2, None)


def test_an_unknown_record_kind_keeps_the_records_before_it() -> None:
    frame = frames.data_frame(7, [frames.lite(101, 5), b"Xabc"])

    decoded = data(seeded(), frame)

    assert [record.values[0] for record in decoded.records] == [5]
    assert decoded.problem == "record kind 0x58 at byte 16 of 20"


def test_multiplier_zero_counts_as_one() -> None:
    names = ("cde_fo", "1", "USDINR")
    record = frames.snapshot(1, "sf|cde_fo|1", [891_234], names=names, multiplier=0, precision=4)

    (decoded,) = data(hsm.Decoder(), frames.data_frame(1, [record])).records

    assert decoded.topic.price(decoded.values[0]) == Decimal("89.1234")


def test_topics_beyond_a_frame_go_into_the_next() -> None:
    topics = [f"sf|nse_cm|{number}" for number in range(3_100)]

    requests = [frames.read_request(frame) for frame in hsm.subscribe(topics, 11)]

    assert [len(request.topics) for request in requests] == [1500, 1500, 100]
    assert [topic for request in requests for topic in request.topics] == topics


@given(cut=st.integers(min_value=0, max_value=len(SNAPSHOTS) - 1))
def test_a_frame_cut_anywhere_is_reported_and_gives_no_half_record(cut: int) -> None:
    try:
        decoded = data(hsm.Decoder(), SNAPSHOTS[:cut])
    except hsm.Malformed:
        assert cut < 9
        return

    assert decoded.problem is not None
    assert [record.topic.name for record in decoded.records] == (
        ["sf|nse_cm|3045"] if cut >= SNAPSHOTS.index(b"S\x00\x66") else []
    )


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder_but_by_being_malformed(frame: bytes) -> None:
    try:
        seeded().decode(frame)
    except hsm.Malformed as error:
        assert str(error)  # noqa: PT017  any other exception fails the test


values_of_a_scrip = st.lists(
    st.none() | st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=21
)


@given(st.lists(values_of_a_scrip, max_size=20))
def test_any_updates_end_where_the_server_stands(updates: list[list[int | None]]) -> None:
    decoder = hsm.Decoder()
    truth: list[int] = list(range(21))
    first = frames.snapshot(1, "sf|nse_cm|3045", truth, names=NAMES)
    last = data(decoder, frames.data_frame(1, [first])).records[-1]

    for values in updates:
        for position, value in enumerate(values):
            truth[position] = truth[position] if value is None else value
        last = data(decoder, frames.data_frame(2, [frames.update(1, values)])).records[-1]

    assert last.values == tuple(truth)
