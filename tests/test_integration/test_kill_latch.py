"""The kill latch on a real message server."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.errors import BusError
from daemon.kill_switch import KillSwitchLatch, RedisLatchStore

pytestmark = pytest.mark.integration


@pytest.fixture
async def store(message_server: str) -> AsyncIterator[RedisLatchStore]:
    store = RedisLatchStore.connect(message_server)
    yield store
    await store.close()


def a_latch(state_dir: Path, prefix: str, store: RedisLatchStore, at_ns: int) -> KillSwitchLatch:
    return KillSwitchLatch(state_dir, prefix, lambda: at_ns, store)


async def test_another_state_folder_sees_the_key(tmp_path: Path, store: RedisLatchStore) -> None:
    prefix = f"test:{uuid.uuid4().hex}"
    here = a_latch(tmp_path / "here", prefix, store, at_ns=1)
    there = a_latch(tmp_path / "there", prefix, store, at_ns=2)
    await here.release("test", "anna")

    steps = await there.engage("from elsewhere", "bob")

    assert all(step.ok for step in steps)
    assert (await here.read()).reason == "from elsewhere"


async def test_a_key_that_was_never_set_is_absent(store: RedisLatchStore) -> None:
    assert await store.get(f"test:{uuid.uuid4().hex}:kill") is None


async def test_without_a_server_every_call_is_a_bus_error(tmp_path: Path) -> None:
    store = RedisLatchStore.connect(f"unix://{tmp_path}/nobody.sock")

    with pytest.raises(BusError, match="cannot be read"):
        await store.get("test:kill")
    with pytest.raises(BusError, match="cannot be written"):
        await store.set("test:kill", b"{}")

    await store.close()
