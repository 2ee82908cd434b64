"""A PostgreSQL server of one's own: real, in a folder, on a socket that only its folder's owner reaches."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Generator

_SETUP: Final = "infra/local/setup/system_packages.sh"
_USER: Final = "postgres"  # that the distribution's package makes; the server refuses to run as root
_WITHIN_S: Final = 60.0
_OPTIONS: Final = ("listen_addresses=", "max_connections=50", "shared_buffers=256MB", "log_min_messages=warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A server that runs."""

    folder: Path
    programs: Path
    user: str

    def url(self, database: str) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg2://{self.user}@/{database}?host={quote(str(self.folder), safe='')}"

    def make(self, database: str, *, like: str = "template1") -> str:
        """A new database, a copy of another one that nobody uses now; its URL."""
        subprocess.run(
            [str(self.programs / "createdb"), "-h", str(self.folder), "-U", self.user, "-T", like, database], check=True
        )
        return self.url(database)

    def query(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """Rows."""
        import psycopg2  # noqa: PLC0415 - only where there is a server

        connection = psycopg2.connect(host=str(self.folder), user=self.user, dbname=database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()


@contextmanager
def postgres(folder: Path) -> Generator[Postgres]:
    """Run a server in this new folder. Installs the distribution's package where it is missing."""
    subprocess.run([_SETUP, "postgres"], check=True)
    programs = _programs()
    folder.mkdir(mode=0o700, parents=True)
    user = _USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(folder, user, user)
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if os.geteuid() == 0 else []
    data, log = folder / "data", folder / "postgres.log"
    initdb = [
        *as_user,
        str(programs / "initdb"),
        "-D",
        str(data),
        "-U",
        user,
        "-A",
        "peer",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
    ]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    (data / "pg_hba.conf").write_text("local all all trust\n", encoding="ascii")  # its folder has mode 0700
    options = [part for option in (*_OPTIONS, f"unix_socket_directories={folder}") for part in ("-c", option)]
    with log.open("ab") as output:
        server = subprocess.Popen(
            [*as_user, str(programs / "postgres"), "-D", str(data), *options], stdout=output, stderr=output, cwd=folder
        )
    try:
        _until_ready(programs, folder, user, log)
        yield Postgres(folder=folder, programs=programs, user=user)
    finally:
        server.send_signal(signal.SIGINT)  # "fast": does not wait for its clients
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def _programs() -> Path:
    """Of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise SystemExit(f"no PostgreSQL in /usr/lib/postgresql; run {_SETUP} postgres")
    return found[-1]


def _until_ready(programs: Path, folder: Path, user: str, log: Path) -> None:
    end = time.monotonic() + _WITHIN_S
    while subprocess.run([str(programs / "pg_isready"), "-q", "-h", str(folder), "-U", user], check=False).returncode:
        if time.monotonic() > end:
            raise SystemExit(
                f"PostgreSQL was not ready within {_WITHIN_S:g} s:\n{log.read_text(encoding='utf-8')[-2000:]}"
            )
        time.sleep(0.1)
