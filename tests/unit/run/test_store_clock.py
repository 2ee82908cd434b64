"""The deployment's clock where the cloud has no Ironic: S3's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mlops_sdk import store_clock
from mlops_sdk.errors import RemoteError, ServiceUnavailable
from mlops_sdk.objects import ObjectStore
from mlops_sdk.store_clock import StoreClock

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Server:
    """A bucket that says what time it is, unless it is away."""

    def __init__(self) -> None:
        self.asked = 0
        self.says: datetime | None = NOON

    def moment(self) -> datetime:
        self.asked += 1
        if self.says is None:
            raise ServiceUnavailable("away")
        return self.says


@pytest.fixture
def elapsed(monkeypatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(store_clock.time, "monotonic", lambda: seconds[0])
    return seconds


def test_it_is_asked_once_a_minute_and_goes_on_by_itself(elapsed):
    server = Server()
    clock = StoreClock(server)
    assert clock.now() == NOON
    elapsed[0] = 59.5
    assert clock.now() == NOON + timedelta(seconds=59.5)
    assert server.asked == 1
    elapsed[0], server.says = 61.0, NOON + timedelta(seconds=90)
    assert clock.now() == NOON + timedelta(seconds=90)


def test_it_goes_on_while_s3_is_away_and_does_not_begin_without_it(elapsed):
    server = Server()
    clock = StoreClock(server)
    server.says = None
    with pytest.raises(ServiceUnavailable):
        clock.now()
    server.says = NOON
    clock.now()
    elapsed[0], server.says = 600.0, None
    assert clock.now() == NOON + timedelta(seconds=600)


def test_it_never_goes_back(elapsed):
    server = Server()
    clock = StoreClock(server)
    clock.now()
    elapsed[0] = 60.0
    before = clock.now()
    elapsed[0], server.says = 61.0, NOON + timedelta(seconds=60)
    assert clock.now() >= before


@pytest.mark.parametrize("date", ["", "soon"])
def test_a_server_without_a_clock_is_refused(date):
    class Client:
        def head_bucket(self, **_):
            return {"ResponseMetadata": {"HTTPHeaders": {"date": date} if date else {}}}

    with pytest.raises(RemoteError, match="what time it is"):
        ObjectStore(Client(), "b").moment()
