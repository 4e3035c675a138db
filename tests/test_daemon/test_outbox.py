import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from builders import a_fill, an_order

from daemon.errors import ConfigError
from daemon.outbox import SCHEMA, SCHEMA_VERSION, Outbox, OutboxOrder


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = await Outbox(tmp_path / "outbox.sqlite").open()
    yield outbox
    await outbox.close()


async def test_a_new_order_is_written_down_as_an_intent(outbox: Outbox) -> None:
    order = an_order()

    known = await outbox.record_intent(order, "1-0")

    assert known is None
    assert await outbox.find("order1") == OutboxOrder(order, "1-0", "intent", is_final=False)


async def test_a_client_order_id_is_written_down_once(outbox: Outbox) -> None:
    await outbox.record_intent(an_order(75), "1-0")
    await outbox.mark_sent("order1")

    known = await outbox.record_intent(an_order(150), "2-0")

    assert known == OutboxOrder(an_order(75), "1-0", "sent", is_final=False)
    assert (await outbox.find("order1")) == known


async def test_an_order_that_was_never_seen_is_not_found(outbox: Outbox) -> None:
    assert await outbox.find("order1") is None


async def test_stages_follow_each_other(outbox: Outbox) -> None:
    await outbox.record_intent(an_order(), "1-0")
    stages = []

    for step in (outbox.mark_sent, outbox.mark_answered):
        await step("order1")
        stages += [row.stage for row in await outbox.unfinished()]

    assert stages == ["sent", "answered"]


async def test_a_final_report_finishes_its_order(outbox: Outbox) -> None:
    await outbox.record_intent(an_order(), "1-0")
    await outbox.add_reports([a_fill(an_order())])

    found = await outbox.find("order1")

    assert await outbox.unfinished() == []
    assert found is not None
    assert found.is_final


async def test_an_open_report_leaves_its_order_unfinished(outbox: Outbox) -> None:
    await outbox.record_intent(an_order(), "1-0")

    await outbox.add_reports([a_fill(an_order(), status="partially_filled")], answers="order1")

    assert [(row.stage, row.is_final) for row in await outbox.unfinished()] == [("answered", False)]


async def test_unfinished_orders_come_in_the_order_they_were_placed(outbox: Outbox) -> None:
    for number, tag in enumerate(("z", "a", "m")):
        await outbox.record_intent(an_order(client_order_id=tag, placed_ns=number), f"{number}-0")

    assert [row.order.client_order_id for row in await outbox.unfinished()] == ["z", "a", "m"]


async def test_the_same_report_is_kept_once(outbox: Outbox) -> None:
    fill = a_fill(an_order())

    added = [await outbox.add_reports([fill, fill]), await outbox.add_reports([fill])]

    assert added == [1, 0]
    assert await outbox.unpublished() == [fill]


async def test_reports_wait_in_order_until_they_are_published(outbox: Outbox) -> None:
    fills = [a_fill(an_order(), execution_id=f"e{number}") for number in (3, 1, 2)]
    await outbox.add_reports(fills)

    await outbox.mark_published(["e3"])

    assert await outbox.unpublished() == fills[1:]
    assert await outbox.unpublished(limit=1) == fills[1:2]
    assert await outbox.count_unpublished() == 2


async def test_reports_that_the_bus_has_lost_wait_again(outbox: Outbox) -> None:
    fills = [a_fill(an_order(), execution_id=f"e{number}") for number in range(3)]
    await outbox.add_reports(fills)
    await outbox.mark_published(["e0", "e1"])

    lost = await outbox.take_for_lost(["e1", "e2"])

    assert lost == 1
    assert await outbox.confirmed() == [("e0", "order1")]
    assert await outbox.unpublished() == fills[1:]


async def test_what_was_held_before_an_entry_is_told_from_what_it_brought(outbox: Outbox) -> None:
    first, second = (an_order(client_order_id=tag, decision_id=tag) for tag in ("a", "b"))
    await outbox.record_intent(first, "1-0")
    before = await outbox.held_before(first)
    await outbox.add_reports([a_fill(first)])

    assert (before, await outbox.held_before(first), await outbox.held_before(second)) == (0, 0, 75)


async def test_a_decision_that_has_only_closed_does_not_know_what_is_held(outbox: Outbox) -> None:
    entry = an_order(client_order_id="a", decision_id="a")
    exits = an_order(25, client_order_id="b", decision_id="b", side="sell", purpose="exit")
    for order in (entry, exits):
        await outbox.record_intent(order, "1-0")
        await outbox.add_reports([a_fill(order)])

    assert await outbox.held_before(an_order(decision_id="b")) == 50


async def test_it_remembers_over_a_restart(tmp_path: Path) -> None:
    first = await Outbox(tmp_path / "outbox.sqlite").open()
    await first.record_intent(an_order(), "1-0")
    await first.add_reports([a_fill(an_order(), status="accepted")])
    await first.close()

    second = await Outbox(tmp_path / "outbox.sqlite").open()

    assert len(await second.unfinished()) == 1
    assert await second.count_unpublished() == 1
    await second.close()


async def test_every_commit_reaches_the_disk(outbox: Outbox) -> None:
    def pragma(name: str) -> object:
        return outbox._database.execute(f"PRAGMA {name}").fetchone()[0]

    assert await outbox._run(lambda: pragma("journal_mode")) == "wal"
    assert await outbox._run(lambda: pragma("synchronous")) == 2  # FULL


async def test_without_a_path_it_lives_in_memory() -> None:
    outbox = await Outbox(None).open()

    await outbox.record_intent(an_order(), "1-0")

    assert len(await outbox.unfinished()) == 1
    await outbox.close()


async def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    outbox = await Outbox(tmp_path / "outbox.sqlite").open()

    await outbox.close()
    await outbox.close()


async def test_before_it_is_open_it_refuses_to_work(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite")

    with pytest.raises(RuntimeError, match="not open"):
        await outbox.record_intent(an_order(), "1-0")
    await outbox.close()


async def test_a_file_that_is_no_outbox_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be read as a header" * 20)
    outbox = Outbox(path)

    with pytest.raises(ConfigError, match=r"outbox .* cannot be used: .*move the file away"):
        await outbox.open()
    await outbox.close()


async def test_an_outbox_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=7")
    connection.close()
    outbox = Outbox(path)

    with pytest.raises(ConfigError, match="has version 7, this program writes version 1"):
        await outbox.open()
    await outbox.close()


async def test_a_cancel_is_due_until_its_order_is_final(tmp_path: Path) -> None:
    outbox = await Outbox(tmp_path / "outbox.sqlite").open()
    for tag in ("never_sent", "open", "over"):
        await outbox.record_intent(an_order(client_order_id=tag), "1-0")
        await outbox.note_cancel(tag)
        await outbox.note_cancel(tag)
    for tag in ("open", "over"):
        await outbox.mark_sent(tag)
    await outbox.add_reports([a_fill(an_order(client_order_id="over"))])
    await outbox.close()

    again = await Outbox(tmp_path / "outbox.sqlite").open()

    assert await again.cancels_due() == ["open"]
    await again.close()


async def test_an_outbox_without_cancels_as_the_first_release_wrote_it_is_opened(
    tmp_path: Path,
) -> None:
    path = tmp_path / "outbox.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(f"{SCHEMA} PRAGMA user_version={SCHEMA_VERSION};")
    connection.close()

    outbox = await Outbox(path).open()

    assert await outbox.cancels_due() == []
    await outbox.close()


async def test_a_slow_disk_does_not_hold_the_event_loop_up(outbox: Outbox) -> None:
    release = threading.Event()
    slow = asyncio.ensure_future(outbox._run(lambda: release.wait(20)))

    await asyncio.sleep(0.01)

    release.set()
    assert await slow  # else the loop has turned only when the disk gave up


async def test_calls_made_together_are_done_one_after_the_other(outbox: Outbox) -> None:
    orders = [an_order(client_order_id=f"o{number}") for number in range(50)]

    known = await asyncio.gather(*(outbox.record_intent(order, "1-0") for order in orders * 2))

    assert sum(row is None for row in known) == 50
    assert len(await outbox.unfinished()) == 50


CHILD = """
import asyncio, sys
from pathlib import Path
from builders import a_fill, an_order
from daemon.outbox import Outbox

async def main(path):
    outbox = await Outbox(Path(path)).open()
    number = 0
    while True:
        tag = f"o{number}"
        order = an_order(client_order_id=tag, placed_ns=number)
        await outbox.record_intent(order, f"{number}-0")
        print("intent", tag, flush=True)
        await outbox.mark_sent(tag)
        print("sent", tag, flush=True)
        await outbox.add_reports([a_fill(order)], answers=tag)
        print("answered", tag, flush=True)
        number += 1

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("lines_before_the_kill", [1, 2, 3, 10, 50])
async def test_nothing_that_was_confirmed_is_lost_by_a_kill(
    tmp_path: Path, lines_before_the_kill: int
) -> None:
    path = tmp_path / "outbox.sqlite"
    confirmed = await asyncio.to_thread(_lines_until_killed, path, lines_before_the_kill)

    outbox = await Outbox(path).open()

    reached = {tag: stage for stage, tag in confirmed}
    order_of_stages = ("intent", "sent", "answered")
    for tag, stage in reached.items():
        row = await outbox.find(tag)
        assert row is not None
        assert order_of_stages.index(row.stage) >= order_of_stages.index(stage)
        assert row.is_final == (row.stage == "answered")
    assert await outbox.count_unpublished() >= sum(s == "answered" for s in reached.values())
    await outbox.close()


def _lines_until_killed(path: Path, count: int) -> list[list[str]]:
    """Run the child, kill it once it has confirmed `count` steps, and return all it confirmed."""
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((tests, str(Path(tests).parent)))},
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(count)]
        child.send_signal(signal.SIGKILL)
        lines += [line for line in child.stdout if line.endswith("\n")]
    return [line.split() for line in lines]
