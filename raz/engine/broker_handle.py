"""The broker as other processes call it: its namespace in Ray, and the types of its methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from raz.engine.broker_protocol import BuilderMessage, BuildRequest, StageReply

if TYPE_CHECKING:
    import ray

NAMESPACE = "raz"

P = ParamSpec("P")
R = TypeVar("R")


class RemoteMethod(Protocol[P, R]):
    """A method of an actor, called through its handle."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ray.ObjectRef[R]: ...


class BrokerHandle(Protocol):
    """A handle of a StageBroker. Ray knows the methods of its own handles only at run time."""

    join: RemoteMethod[[str, list[str]], list[str]]
    poll: RemoteMethod[[BuildRequest, int, int, bool], StageReply]
    leave: RemoteMethod[[str], None]
    warm: RemoteMethod[[float], None]
    report: RemoteMethod[[int, BuilderMessage], None]
    shutdown: RemoteMethod[[], None]
