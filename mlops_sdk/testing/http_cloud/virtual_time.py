"""One world's time for everything that runs in it: ours, keystoneauth's, tenacity's (and so stamina's) and botocore's.

Nothing waits: who sleeps lets the world's time pass. Nothing runs beside it: what asks for threads gets its work done
one after the other, and a lock that is taken is waited for in the world's time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Final, Protocol, Self
from unittest import mock

_TICK_S: Final = 0.05

# Where a clock, a pause, a lock or a pool of threads is looked up. Whoever adds one adds it here; the determinism test
# of `benchmarks leaks` fails when one is missing.
_CLOCKS: Final = ("mlops_sdk.cloud", "mlops_sdk.journal", "mlops_sdk.identity.audit")
_LOCKS: Final = (
    "mlops_sdk.capacity.queue_view",
    "mlops_sdk.client",
    "mlops_sdk.cloud",
    "mlops_sdk.heartbeat",
    "mlops_sdk.identity.audit",
    "mlops_sdk.journal",
    "keystoneauth1.identity.base",
)
_POOLS: Final = ("mlops_sdk.journal", "mlops_sdk.capacity.records")
_SLEEPS: Final = ("botocore.endpoint", "keystoneauth1.session", "tenacity.nap")
_JITTERS: Final = ("stamina._core",)


class WorldTime(Protocol):
    """A world's clock."""

    def monotonic(self) -> float:
        """Seconds since it began."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass for who calls; others may act meanwhile."""
        ...


@contextmanager
def virtual_time(world: Callable[[], WorldTime]) -> Generator[None]:
    """While it lasts, everything runs in the time of the world that the function returns at that moment."""

    def monotonic() -> float:
        return world().monotonic()

    def sleep(seconds: float) -> None:
        world().sleep(seconds)

    threads = SimpleNamespace(Lock=lambda: _Lock(sleep))
    time = SimpleNamespace(sleep=sleep, monotonic=monotonic, time=monotonic)
    with ExitStack() as stack:
        for names, attribute, stands_in in (
            (_CLOCKS, "monotonic", monotonic),
            (_LOCKS, "threading", threads),
            (_POOLS, "ThreadPoolExecutor", _InTurn),
            (_SLEEPS, "time", time),
            (_JITTERS, "random", SimpleNamespace(uniform=_middle)),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(importlib.import_module(name), attribute, stands_in))
        yield


def _middle(low: float, high: float) -> float:
    return (low + high) / 2


class _Lock:
    """A lock between those who take turns in one thread."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        del timeout
        while self._taken:
            if not blocking:
                return False
            self._sleep(_TICK_S)
        self._taken = True
        return True

    def release(self) -> None:
        self._taken = False

    def locked(self) -> bool:
        return self._taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _InTurn:
    """A pool that does its work one after the other."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def map(self, work: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        return iter([work(*each) for each in zip(*items, strict=False)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
