"""A clone of a data repository, for one task: Git holds what DVC wrote about the data, the bucket holds the data.

DVC takes a lock on the repository it works in, so every task gets a clone of its own; they share the cache folder.
Credentials of the bucket go to DVC through its environment and are written nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mlops_sdk.config import S3Settings
from mlops_sdk.errors import DataError, ServiceUnavailable, SettingsError

REMOTE_PREFIX = "dvc"
_TIMEOUT_S = 600.0
_FOLDER = "data"
_LOST_RACE = re.compile(
    r"rejected|non-fast-forward|fetch first|cannot lock ref|failed to update ref|reference already exists"
)
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+@")
_LAST_LINES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DataClone:
    """A fresh clone in `folder`, made by :meth:`make`."""

    folder: Path
    repository: str
    branch: str
    environment: Mapping[str, str]

    @classmethod
    def make(cls, repository: str, folder: Path, *, branch: str, s3: S3Settings, cache: Path) -> DataClone:
        """Clone a data repository; one that is empty becomes one of DVC with the first revision.

        Args:
            repository: Clone URL.
            folder: Where to; has to be empty.
            branch: Which revisions go to.
            s3: The bucket behind DVC's remote.
            cache: DVC's cache, shared by all clones on this machine.

        Raises:
            SettingsError: DVC is not installed.
            ServiceUnavailable: the repository cannot be cloned.
        """
        if find_spec("dvc") is None or find_spec("dvc_s3") is None:
            raise SettingsError("DVC is not installed", next_step="install openinfra-mlops[data]")
        environment = _environment(s3, folder)
        work = folder / "clone"
        made = cls(folder=work, repository=repository, branch=branch, environment=environment)
        # not as a local copy of files: somebody may be pushing
        cloned = _run(("git", "clone", "--quiet", "--no-local", "--", repository, str(work)), folder, environment)
        if cloned.returncode != 0:
            raise made._unreachable("clone", cloned.stderr)
        if made._exists(f"refs/remotes/origin/{branch}"):
            made._git("checkout", "--quiet", "-B", branch, f"origin/{branch}")
        if not (work / ".dvc" / "config").is_file():
            _initialise(work, s3)
        _configure(work, s3, cache)
        return made

    def find(self, name: str, md5: str) -> str:
        """The oldest commit that says this content under this name, or empty."""
        if not self._exists(f"refs/remotes/origin/{self.branch}"):
            return ""
        log = ("log", "--reverse", "--format=%H", f"-Smd5: {md5}", f"origin/{self.branch}", "--", _pointer(name))
        return next(iter(self._git(*log).split()), "")

    def add(self, path: Path, name: str, md5: str) -> None:
        """Let DVC take a file into its cache and write its pointer.

        Raises:
            DataError: DVC could not, or the file changed meanwhile.
        """
        target = self.folder / _FOLDER / name
        target.parent.mkdir(exist_ok=True)
        (self.folder / _pointer(name)).unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)
        self._dvc("add", "--quiet", f"{_FOLDER}/{name}")
        if f"md5: {md5}" not in (self.folder / _pointer(name)).read_text():
            raise DataError(f"{str(path)!r} changed while it was pinned", next_step="pin it when nobody writes it")

    def send(self, name: str) -> None:
        """Let DVC store the content in the bucket; what is there already is not sent again."""
        self._dvc("push", "--quiet", _pointer(name))

    def publish(self, name: str, message: str, note: Mapping[str, str]) -> str:
        """Commit the pointer, `note` as its metadata, and push it; the revision, or empty when others were faster."""
        pointer = self.folder / _pointer(name)
        pointer.write_text(pointer.read_text() + "meta:\n" + "".join(f"  {key}: {note[key]}\n" for key in sorted(note)))
        self._git("add", "--all", ".")
        self._git("commit", "--quiet", "--message", message)
        revision = self._git("rev-parse", "HEAD").strip()
        pushed = self._run("git", "push", "--quiet", "origin", f"HEAD:refs/heads/{self.branch}")
        if pushed.returncode == 0:
            return revision
        if _LOST_RACE.search(pushed.stderr):
            return ""
        raise self._unreachable("push to", pushed.stderr)

    def refresh(self) -> None:
        """Forget what was committed here and take what others pushed.

        Raises:
            ServiceUnavailable: the repository cannot be read.
        """
        fetched = self._run("git", "fetch", "--quiet", "origin")
        if fetched.returncode != 0:
            raise self._unreachable("read", fetched.stderr)
        if self._exists(f"refs/remotes/origin/{self.branch}"):
            self._git("reset", "--quiet", "--hard", f"origin/{self.branch}")

    def _exists(self, reference: str) -> bool:
        return self._run("git", "rev-parse", "--verify", "--quiet", reference).returncode == 0

    def _git(self, *arguments: str) -> str:
        done = self._run("git", *arguments)
        if done.returncode != 0:
            raise DataError(
                f"git {arguments[0]} failed in a clone of {_shown(self.repository)!r}",
                seen=_last(done.stderr),
                next_step="see whether the data repository is in order",
            )
        return done.stdout

    def _dvc(self, *arguments: str) -> None:
        done = self._run(sys.executable, "-m", "dvc", *arguments)
        if done.returncode != 0:
            raise DataError(
                f"dvc {arguments[0]} failed for {arguments[-1]!r}",
                seen=_last(done.stderr or done.stdout),
                next_step="see whether the bucket is reachable and the cache folder is writable",
            )

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return _run(argv, self.folder, self.environment)

    def _unreachable(self, action: str, seen: str) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"could not {action} the data repository {_shown(self.repository)!r}",
            seen=_last(seen),
            next_step="check that it is up, and who may write to it",
        )


def _initialise(work: Path, s3: S3Settings) -> None:
    """What `dvc init` writes, without its analytics; committed with the first revision."""
    settings = work / ".dvc"
    settings.mkdir(exist_ok=True)
    remote = f"[core]\n    remote = bucket\n    analytics = false\n['remote \"bucket\"']\n    url = {_url(s3)}\n"
    (settings / "config").write_text(remote)
    (settings / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (work / ".dvcignore").touch()


def _configure(work: Path, s3: S3Settings, cache: Path) -> None:
    """What holds on this machine and deployment only: never committed, and without secrets."""
    cache.mkdir(parents=True, exist_ok=True)
    lines = ["[core]", "    remote = bucket", "    analytics = false", "    autostage = false"]
    lines += ["[cache]", f"    dir = {cache.resolve()}", "    type = reflink,hardlink,copy"]
    lines += [
        "['remote \"bucket\"']",
        f"    url = {_url(s3)}",
        f"    endpointurl = {s3.endpoint}",
        f"    region = {s3.region}",
    ]
    if s3.ca_bundle:
        lines.append(f"    ssl_verify = {s3.ca_bundle}")
    (work / ".dvc" / "config.local").write_text("\n".join(lines) + "\n")


def _environment(s3: S3Settings, folder: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "DVC_", "GIT_DIR", "GIT_WORK"))
    }
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key.get_secret_value(),
        "AWS_EC2_METADATA_DISABLED": "true",
        # as `mlops_sdk.objects`: the default trailer fails PUTs to RGW
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "DVC_NO_ANALYTICS": "1",
        # settings and state of this clone alone: not the user's, and no lock that others hold
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(folder / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc-state"),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "openinfra-mlops",
        "GIT_AUTHOR_EMAIL": "mlops@invalid",
        "GIT_COMMITTER_NAME": "openinfra-mlops",
        "GIT_COMMITTER_EMAIL": "mlops@invalid",
        "LC_ALL": "C.UTF-8",
    }


def _run(argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServiceUnavailable(
            f"{Path(argv[0]).name} {argv[1]} did not end within {_TIMEOUT_S:.0f} s",
            next_step="check that repository and bucket are reachable",
        ) from error


def _url(s3: S3Settings) -> str:
    return f"s3://{s3.bucket}/{REMOTE_PREFIX}"


def _pointer(name: str) -> str:
    return f"{_FOLDER}/{name}.dvc"


def _shown(text: str) -> str:
    return _USER_INFO.sub("", text)


def _last(text: str) -> str:
    return _shown(" | ".join(line.strip() for line in text.strip().splitlines()[-_LAST_LINES:]))
