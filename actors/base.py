"""What an actor is: a fold that keeps state, takes one message and yields messages.

No I/O, no clock, no randomness, no logging: what surrounds the fold (reading, publishing,
restarting) is the runner's. The class line is the wiring: inputs and outputs are read off it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, get_args, get_origin

from actors.messages import Message

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)


class Arrival(NamedTuple, Generic[In]):
    """A message, and when what led to it reached us.

    since_ns: on the monotonic clock, for actors that must answer in time; None where no clock
    counts.
    """

    message: In
    since_ns: int | None = None


class Actor(ABC, Generic[In, Out]):
    """Handle messages of the types In, yield messages of the types Out.

    The same messages in the same order must yield the same outputs: replay and recovery depend
    on it.
    """

    name: ClassVar[str]
    memory_ns: ClassVar[int | None] = None
    """How far back, in market time, the state reaches; None: to the start of the session."""
    heavy: ClassVar[bool] = False
    """Run `handle_many` in a worker thread, since it computes for milliseconds."""
    together: int = 1
    """Of a heavy actor: the most messages that it may be given at a time."""

    @abstractmethod
    def handle(self, message: In) -> Iterable[Out]:
        """Fold one message into the state and yield what follows from it."""

    def handle_many(self, arrivals: Sequence[Arrival[In]]) -> Iterator[Sequence[Out]]:
        """Handle messages in order; yield the outputs of each, in the same order.

        What follows from each must be what `handle` would yield. Raises in the place of the first
        message that fails; the state is then of no more use.
        """
        for message, _ in arrivals:
            yield list(self.handle(message))

    def remember(self, message: In) -> object:
        """Fold a message whose outputs are known already, as recovery does.

        By default `handle` with its outputs dropped; an actor whose outputs are dear does less.
        """
        for _ in self.handle(message):
            pass
        return None

    @classmethod
    def inputs(cls) -> tuple[type[Message], ...]:
        """Message types this actor takes, as its class line names them."""
        return _message_types(cls, 0)

    @classmethod
    def outputs(cls) -> tuple[type[Message], ...]:
        """Message types this actor yields, as its class line names them."""
        return _message_types(cls, 1)


def _message_types(actor: type[Actor[Any, Any]], position: int) -> tuple[type[Message], ...]:
    for base in getattr(actor, "__orig_bases__", ()):
        if get_origin(base) is Actor:
            argument = get_args(base)[position]
            return get_args(argument) or (argument,)
    raise TypeError(f"{actor.__name__} must name its messages: class X(Actor[Input, Output])")
