"""A MemoryBus that can be lost and found again, and commits that fail before or after they work."""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal

from actors.messages import AnyMessage
from daemon.bus import DeadLetter, Entry, Envelope, Output
from daemon.errors import BusError
from daemon.memory_bus import MemoryBus, MemoryConsumer, MemoryPublisher

Fault = Literal["refused", "unanswered"]
"""What a call that raises has done: nothing, or everything, and only the answer is lost."""


class UnreliableBus(MemoryBus):
    """While `is_lost` every call raises BusError; so do as many commits and publications as faults
    were put into `commit_faults` and `publish_faults`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_lost = False
        self.refusals = 0  # calls that met the loss
        self.commit_faults: deque[Fault] = deque()
        self.publish_faults: deque[Fault] = deque()
        self.consumers_opened = 0
        self.publishers_opened = 0

    async def consumer(
        self, group: str, streams: Sequence[str], outputs: Sequence[str] = (), name: str = "0"
    ) -> MemoryConsumer:
        self.check()
        self.consumers_opened += 1
        consumer = await super().consumer(group, streams, outputs, name)
        read, commit = consumer.read, consumer.commit

        async def unreliable_read(limit: int, block_ms: int) -> list[Entry]:
            self.check()
            entries = await read(limit, block_ms)
            self.check()
            return entries

        async def unreliable_commit(
            inputs: Sequence[Entry],
            outputs: Sequence[Output],
            dead: Sequence[DeadLetter] = (),
        ) -> list[str]:
            fault = self._fault(self.commit_faults)
            ids = await commit(inputs, outputs, dead)
            self._answer(fault)
            return ids

        vars(consumer).update(read=unreliable_read, commit=unreliable_commit)
        return consumer

    async def publisher(self, source: str, streams: Sequence[str]) -> MemoryPublisher:
        self.check()
        self.publishers_opened += 1
        publisher = await super().publisher(source, streams)
        publish = publisher.publish

        async def unreliable_publish(*messages: AnyMessage) -> list[str]:
            fault = self._fault(self.publish_faults)
            ids = await publish(*messages)
            self._answer(fault)
            return ids

        vars(publisher).update(publish=unreliable_publish)
        return publisher

    async def latest(self, stream: str) -> dict[str, Envelope]:
        self.check()
        return await super().latest(stream)

    async def is_quiet(self, streams: Collection[str] | None = None) -> bool:
        self.check()
        return await super().is_quiet(streams)

    def check(self) -> None:
        if self.is_lost:
            self.refusals += 1
            raise BusError("the server is gone")

    def _fault(self, faults: deque[Fault]) -> Fault | None:
        self.check()
        fault = faults.popleft() if faults else None
        if fault == "refused":
            raise BusError("the server did not take it")
        return fault

    def _answer(self, fault: Fault | None) -> None:
        if fault == "unanswered":
            raise BusError("the server did not answer")
