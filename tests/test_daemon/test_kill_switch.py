import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from actors.messages import KillSwitch
from daemon.errors import BusError
from daemon.kill_switch import FIRST_START, KillSwitchLatch, LatchStore, Step

KEY = "paper:v1:kill"


class DictStore:
    """A latch store in memory; `fails` makes every call raise, `hangs` never answers."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.fails = False
        self.hangs = False

    async def get(self, key: str) -> bytes | None:
        await self._trouble()
        return self.values.get(key)

    async def set(self, key: str, value: bytes) -> None:
        await self._trouble()
        self.values[key] = value

    async def _trouble(self) -> None:
        if self.fails:
            raise BusError("server gone")
        if self.hangs:
            await asyncio.Event().wait()


class SettableClock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


def a_latch(state_dir: Path, store: LatchStore | None = None, **fields: Any) -> KillSwitchLatch:
    given: dict[str, Any] = {"clock_ns": SettableClock(), "timeout_s": 0.05}
    return KillSwitchLatch(state_dir, "paper:v1", store=store, **(given | fields))


async def a_released_latch(
    state_dir: Path, store: LatchStore | None = None, **fields: Any
) -> KillSwitchLatch:
    latch = a_latch(state_dir, store, **fields)
    assert all(step.ok for step in await latch.release("test", "operator"))
    return latch


async def test_a_fresh_state_folder_is_engaged_and_says_what_to_do(tmp_path: Path) -> None:
    latch = a_latch(tmp_path / "state")

    assert latch.is_engaged()
    assert latch.state().reason == FIRST_START
    assert (await latch.read()).reason == FIRST_START


async def test_a_release_lasts_over_a_restart(tmp_path: Path) -> None:
    await a_released_latch(tmp_path)

    assert not a_latch(tmp_path).is_engaged()


async def test_engaging_reaches_other_processes_through_the_file_at_once(tmp_path: Path) -> None:
    ours = await a_released_latch(tmp_path)
    others = a_latch(tmp_path)
    assert not others.is_engaged()

    await ours.engage("operator", "anna", flatten=True)

    assert others.is_engaged()
    assert (others.state().reason, others.state().operator, others.state().flatten) == (
        "operator",
        "anna",
        True,
    )


async def test_the_file_holds_json_that_a_person_can_read(tmp_path: Path) -> None:
    latch = a_latch(tmp_path)

    await latch.engage("too many losses", "anna")

    content = json.loads(latch.path.read_text())
    assert content == {
        "engaged": True,
        "reason": "too many losses",
        "operator": "anna",
        "at": 1_001,
        "flatten": False,
    }


async def test_a_release_needs_a_reason(tmp_path: Path) -> None:
    latch = a_latch(tmp_path)

    with pytest.raises(ValueError, match="a release needs a reason"):
        await latch.release("  ", "anna")

    assert latch.is_engaged()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"engaged": "no"}', b"\xff", b"null", b'{"\xff": 1}']
)
async def test_a_damaged_file_is_engaged(tmp_path: Path, content: bytes) -> None:
    latch = await a_released_latch(tmp_path, DictStore())

    latch.path.write_bytes(content)

    assert latch.is_engaged()
    assert "damaged" in latch.state().reason
    assert (await latch.read()).engaged


async def test_an_unreadable_file_is_engaged(tmp_path: Path) -> None:
    latch = await a_released_latch(tmp_path)

    latch.path.unlink()
    latch.path.mkdir()

    assert latch.is_engaged()
    assert "cannot be read" in latch.state().reason


async def test_a_removed_file_is_engaged(tmp_path: Path) -> None:
    latch = await a_released_latch(tmp_path, DictStore())

    latch.path.unlink()

    assert latch.is_engaged()
    assert (await latch.read()).engaged


async def test_engaging_sets_file_and_key_and_tells(tmp_path: Path) -> None:
    store = DictStore()
    told: list[KillSwitch] = []

    async def announce(message: KillSwitch) -> None:
        told.append(message)

    latch = await a_released_latch(tmp_path, store, announce=announce)
    steps = await latch.engage("operator", "anna")

    assert [(step.step, step.ok) for step in steps] == [
        ("stop file", True),
        ("latch key", True),
        ("message", True),
    ]
    assert json.loads(store.values[KEY])["engaged"] is True
    assert [message.engaged for message in told] == [False, True]


async def test_without_a_server_engaging_still_works_and_reports_each_step(tmp_path: Path) -> None:
    store = DictStore()

    async def announce(_: KillSwitch) -> None:
        raise BusError("server gone")

    latch = a_latch(tmp_path, store, announce=announce)
    await latch.release("test", "anna")
    store.fails = True

    steps = await latch.engage("operator", "anna")

    assert steps == [
        Step("stop file", True, str(latch.path)),
        Step("latch key", False, "server gone"),
        Step("message", False, "server gone"),
    ]
    assert latch.is_engaged()


async def test_a_server_that_hangs_does_not_hold_the_kill_up(tmp_path: Path) -> None:
    store = DictStore()
    latch = await a_released_latch(tmp_path, store)
    store.hangs = True

    async with asyncio.timeout(20):
        steps = await latch.engage("operator", "anna")

    assert steps[1] == Step("latch key", False, "no answer in 0.05 s")
    assert latch.is_engaged()


async def test_an_unreachable_key_counts_as_engaged(tmp_path: Path) -> None:
    store = DictStore()
    latch = await a_released_latch(tmp_path, store)
    assert not (await latch.read()).engaged

    store.fails = True

    assert (await latch.read()).reason == "kill latch key is unreachable: server gone"
    assert not latch.is_engaged()  # the file alone


async def test_an_unreachable_key_does_not_hide_the_operators_reason(tmp_path: Path) -> None:
    store = DictStore()
    latch = a_latch(tmp_path, store)
    await latch.engage("operator", "anna")
    store.fails = True

    assert (await latch.read()).reason == "operator"


async def test_a_key_that_was_never_set_leaves_the_word_to_the_file(tmp_path: Path) -> None:
    latch = await a_released_latch(tmp_path, DictStore())
    again = a_latch(tmp_path, DictStore())

    assert not (await latch.read()).engaged
    assert not (await again.read()).engaged


async def test_a_damaged_key_counts_as_engaged(tmp_path: Path) -> None:
    store = DictStore()
    latch = await a_released_latch(tmp_path, store)

    store.values[KEY] = b"1"

    assert (await latch.read()).engaged


async def test_the_newer_word_of_file_and_key_counts(tmp_path: Path) -> None:
    store = DictStore()
    clock = SettableClock()
    here = await a_released_latch(tmp_path / "here", store, clock_ns=clock)
    elsewhere = a_latch(tmp_path / "elsewhere", store, clock_ns=clock)

    await elsewhere.engage("another machine", "bob")
    engaged = await here.read()
    await here.release("looked at it", "anna")

    assert engaged.reason == "another machine"
    assert not (await here.read()).engaged


async def test_a_release_without_a_server_counts_once_the_server_is_back(tmp_path: Path) -> None:
    store = DictStore()
    latch = a_latch(tmp_path, store)
    await latch.engage("operator", "anna")
    store.fails = True

    steps = await latch.release("resume", "anna")
    during = await latch.read()
    store.fails = False

    assert [step.ok for step in steps] == [True, False, True]
    assert during.engaged
    assert not (await latch.read()).engaged


async def test_a_clock_set_back_does_not_make_a_later_word_older(tmp_path: Path) -> None:
    store = DictStore()
    clock = SettableClock()
    latch = await a_released_latch(tmp_path, store, clock_ns=clock)

    clock.now_ns = 5
    await latch.engage("operator", "anna")

    assert (await latch.read()).engaged
    assert latch.state().at == 1_002


async def test_where_nothing_can_be_written_the_file_is_removed_which_engages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latch = await a_released_latch(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    steps = await latch.engage("operator", "anna")

    assert steps[0].ok
    assert "removed" in steps[0].detail
    assert latch.is_engaged()
    assert _names_in(tmp_path) == []


async def test_a_release_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DictStore()
    latch = a_latch(tmp_path, store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    steps = await latch.release("resume", "anna")

    assert [step.ok for step in steps] == [False]
    assert latch.is_engaged()
    assert store.values == {}


async def test_asking_whether_it_is_engaged_takes_microseconds(tmp_path: Path) -> None:
    latch = await a_released_latch(tmp_path)
    latch.is_engaged()

    best_s = min(_work_of_a_thousand(latch) for _ in range(5)) / 1000

    assert best_s < 20e-6


def _work_of_a_thousand(latch: KillSwitchLatch) -> float:
    began_s = time.thread_time()  # of this thread alone, however busy the machine is
    for _ in range(1000):
        latch.is_engaged()
    return time.thread_time() - began_s


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
