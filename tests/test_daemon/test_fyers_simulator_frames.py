"""The simulator's half of the data socket's frames, against frames built by hand.

tests/fixtures/fyers/golden_frames.json holds them with their meaning.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.brokers.fyers_simulator import frames
from daemon.brokers.fyers_simulator.frames import BadFrame, FrameType

GOLDEN: dict[str, dict[str, Any]] = {
    frame["name"]: frame
    for frame in json.loads(
        (Path(__file__).parents[1] / "fixtures/fyers/golden_frames.json").read_text()
    )["frames"]
}
SBIN, NIFTY = "sf|nse_cm|3045", "if|nse_cm|Nifty 50"


def golden(name: str) -> bytes:
    return bytes.fromhex(GOLDEN[name]["hex"])


def scrip_values(record: dict[str, Any]) -> list[int | None]:
    order = "ltp volume ltt feed_time bid_size ask_size bid ask ltq tot_buy tot_sell atp"
    order += " oi low high year_high year_low lower_ckt upper_ckt open prev_close"
    prices = {"ltp", "bid", "ask", "atp", "low", "high", "lower_ckt", "upper_ckt", "open"}
    prices.add("prev_close")
    return [
        None if record.get(name) is None else round(record[name] * (100 if name in prices else 1))
        for name in order.split()
    ]


def index_values(record: dict[str, Any]) -> list[int | None]:
    order = ("ltp", "prev_close", "feed_time", "high", "low", "open")
    return [
        None if name not in record else round(record[name] * (1 if name == "feed_time" else 100))
        for name in order
    ]


def test_an_authentication_is_read() -> None:
    request = frames.read_request(golden("auth"))

    assert request.type == FrameType.AUTHENTICATE
    assert request.text == GOLDEN["auth"]["means"]["hsm_key"]
    assert request.fields[2] == b"P"
    assert request.fields[4] == b"Sim-1.0"


@pytest.mark.parametrize("name", ["mode_full_ch11", "mode_lite_ch11"])
def test_a_mode_is_read(name: str) -> None:
    request = frames.read_request(golden(name))

    assert request.type == FrameType.MODE
    assert request.channels == (11,)
    assert request.is_lite is (name == "mode_lite_ch11")


@pytest.mark.parametrize("name", ["subscribe", "unsubscribe"])
def test_topics_are_read(name: str) -> None:
    request = frames.read_request(golden(name))

    assert request.type == GOLDEN[name]["means"]["type"]
    assert request.topics == GOLDEN[name]["means"]["topics"]
    assert request.channel == 11


def test_a_wrong_length_in_the_head_does_not_matter() -> None:
    request = frames.read_request(b"\xff\xff" + golden("subscribe")[2:])

    assert request.topics == [SBIN, NIFTY]


def test_acknowledgement_pause_resume_and_ping_are_read() -> None:
    assert frames.read_request(golden("ack_5")).message_number == 5
    assert frames.read_request(golden("pause_ch11")).channels == (11,)
    assert frames.read_request(golden("resume_ch11")).type == FrameType.RESUME
    assert frames.read_request(golden("ping")).type == FrameType.PING


@pytest.mark.parametrize("cut", range(4, 47))
def test_a_frame_that_ends_within_a_field_is_refused(cut: int) -> None:
    with pytest.raises(BadFrame):
        _ = frames.read_request(golden("subscribe")[:cut]).topics


def test_answers_are_byte_for_byte_those_of_the_protocol() -> None:
    assert frames.authenticated(25) == golden("auth_ok_ack25")
    assert frames.authenticated(0, is_accepted=False) == golden("auth_bad")
    assert frames.result(FrameType.SUBSCRIBE) == golden("sub_ok")
    assert frames.result(FrameType.SUBSCRIBE, is_accepted=False) == golden("sub_bad")
    assert frames.result(FrameType.UNSUBSCRIBE) == golden("unsub_ok")
    assert frames.result(FrameType.PAUSE) == golden("pause_ok")
    assert frames.result(FrameType.RESUME) == golden("resume_ok")
    assert frames.result(FrameType.MODE) == golden("mode_ok")
    assert frames.custom(51001, "Symbol limit exceeded", 4) == golden("custom_symbol_limit")


def test_snapshots_are_byte_for_byte_those_of_the_protocol() -> None:
    scrip, index = GOLDEN["data_snapshots"]["means"]["records"]

    frame = frames.data_frame(
        1,
        [
            frames.snapshot(101, SBIN, scrip_values(scrip), names=("nse_cm", "3045", "SBIN-EQ")),
            frames.snapshot(
                102, NIFTY, index_values(index), names=("nse_cm", "Nifty 50", "Nifty 50")
            ),
        ],
    )

    assert frame == golden("data_snapshots")


def test_a_depth_snapshot_is_byte_for_byte_that_of_the_protocol() -> None:
    record = GOLDEN["data_snapshot_depth"]["means"]["records"][0]
    sides = (record["bids"], record["asks"])
    values = [round(level[0] * 100) for side in sides for level in side]
    values += [level[1] for side in sides for level in side]
    values += [level[2] for side in sides for level in side]

    snapshot = frames.snapshot(103, "dp|nse_cm|3045", values, names=("nse_cm", "3045", "SBIN-EQ"))

    assert frames.data_frame(2, [snapshot]) == golden("data_snapshot_depth")


def test_updates_are_byte_for_byte_those_of_the_protocol() -> None:
    scrip, index = (record["changed"] for record in GOLDEN["data_updates"]["means"]["records"])

    full = frames.data_frame(
        3, [frames.update(101, scrip_values(scrip)), frames.update(102, index_values(index))]
    )

    assert full == golden("data_updates")
    assert frames.data_frame(4, [frames.update(101, [81550])]) == golden("data_update_short")


def test_lite_records_are_byte_for_byte_those_of_the_protocol() -> None:
    frame = frames.data_frame(5, [frames.lite(101, 81555), frames.lite(102, 2518910)])

    assert frame == golden("data_lite")


def test_a_count_beyond_int32_wraps() -> None:
    frame = frames.data_frame(6, [frames.update(101, [81560, 3_000_000_000])])

    assert frame == golden("data_volume_wrap")


def test_changes_are_positional_and_cut_behind_the_last_one() -> None:
    assert frames.changed([1, 2, 3, None], [1, 5, 3, None]) == [None, 5]
    assert frames.changed([1, 2], [1, 2]) == []


def test_a_frame_beyond_64_kib_says_the_most_its_head_can() -> None:
    frame = frames.data_frame(7, [frames.lite(1, 1)] * 10_000)

    assert frame[:2] == b"\xff\xff"
    assert len(frame) == 9 + 10_000 * 7
