"""Exactly one commit, checked out once, tested as itself."""

import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from mlops_sdk import source
from mlops_sdk.commit_check import check_commit
from mlops_sdk.errors import RedCommit, ServiceUnavailable, SourceError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.source import SourceRef, checkout
from mlops_sdk.testing.memory_s3 import MemoryS3

GREEN = "import mlops_sdk\n\n\ndef test_the_checkout_is_imported():\n    assert mlops_sdk.COLOUR == 'green'\n"


class Repository:
    """A repository that commits are made in."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.email", "t@example")
        self.git("config", "user.name", "t")

    def git(self, *args):
        done = subprocess.run(["git", "-C", str(self.folder), *args], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, files):
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")
        return self.git("rev-parse", "HEAD")

    def at(self, commit):
        return SourceRef(repository=str(self.folder), commit=commit)


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "code")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_exactly_the_commit_and_not_what_was_pushed_since(repository, cache):
    first = repository.commit({"a.txt": "first"})
    repository.commit({"a.txt": "second"})
    folder = checkout(repository.at(first), cache)
    assert (folder / "a.txt").read_text() == "first"
    assert checkout(repository.at(first), cache) == folder


def test_it_is_found_again_when_the_repository_is_gone(repository, cache):
    commit = repository.commit({"a.txt": "first"})
    folder = checkout(repository.at(commit), cache)
    repository.folder.rename(repository.folder.with_name("elsewhere"))
    assert checkout(repository.at(commit), cache) == folder
    with pytest.raises(ServiceUnavailable, match="cannot be read"):
        checkout(repository.at("1" * 40), cache)


def test_a_commit_that_no_branch_leads_to_any_more_is_still_the_one_that_was_pushed(repository, cache):
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    repository.commit({"a.txt": "base"})
    lost = repository.commit({"a.txt": "lost"})
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    assert (checkout(repository.at(lost), cache) / "a.txt").read_text() == "lost"


def test_a_commit_that_is_not_there_is_a_clear_error(repository, cache):
    repository.commit({"a.txt": "first"})
    with pytest.raises(SourceError, match="is not in"):
        checkout(repository.at("1" * 40), cache)


def test_a_folder_that_no_longer_equals_its_commit_is_replaced(repository, cache):
    commit = repository.commit({"package/__init__.py": ""})
    folder = checkout(repository.at(commit), cache)
    (folder / "package" / "planted.py").write_text("raise SystemExit")
    (folder / "package" / "__init__.py").unlink()
    again = checkout(repository.at(commit), cache)
    assert again == folder
    assert [path.name for path in (again / "package").iterdir()] == ["__init__.py"]


def test_hooks_and_submodules_of_a_repository_are_not_run(repository, cache, tmp_path):
    inner = Repository(tmp_path / "inner")
    inner.commit({"b.txt": "inner"})
    repository.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner.folder), "inner")
    commit = repository.commit({"a.txt": "outer"})
    hook = repository.folder / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    folder = checkout(repository.at(commit), cache)
    assert list((folder / "inner").iterdir()) == []
    assert not (tmp_path / "ran").exists()


def test_many_processes_may_ask_at_once(repository, cache):
    commit = repository.commit({f"f{i}.txt": str(i) for i in range(20)})
    with ProcessPoolExecutor(4) as pool:
        folders = set(pool.map(partial(checkout, cache=cache), [repository.at(commit)] * 8))
    assert len(folders) == 1
    assert len(list(folders.pop().glob("f*.txt"))) == 20
    [kept] = cache.iterdir()
    assert sorted(path.name for path in kept.iterdir()) == sorted(["bare.git", "lock", commit])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "../code",
        "ext::sh -c touch% /x",
        "--upload-pack=touch /x",
        "http://host/x.git",
        "https://user:password@host/x.git",
        "https://token@host/x.git",
        "ssh://-oProxyCommand=x/y",
        "git@-oProxyCommand=x:y",
        "git@host:-x",
        "file://host/x",
        "/srv/a b",
    ],
)
def test_what_is_no_plain_address_is_refused_without_showing_a_password(url):
    with pytest.raises(SourceError) as refused:
        SourceRef(repository=url, commit="1" * 40)
    assert "password" not in refused.value.seen


@pytest.mark.parametrize("url", ["https://host/a/b.git", "ssh://git@host:22/a", "git@host:a/b.git", "/srv/git/a.git"])
def test_plain_addresses_are_accepted(url):
    assert SourceRef(repository=url, commit="1" * 40).repository == url


@pytest.mark.parametrize("commit", ["main", "1" * 39, "1" * 41, "-" * 40, "G" * 40, "1" * 40 + "\n"])
def test_what_is_no_commit_is_refused(commit):
    with pytest.raises(SourceError):
        SourceRef(repository="/srv/git/a.git", commit=commit)


def test_the_tests_import_the_checkout_and_see_nothing_of_the_deployment(repository, cache, monkeypatch):
    monkeypatch.setenv("MLOPS_BROKER_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("SOMEBODYS_TOKEN", "secret")
    surroundings = "import os\n\n\ndef test_surroundings():\n    assert 'secret' not in os.environ.values()\n"
    home = f"\n\ndef test_home():\n    assert os.path.expanduser('~') != {os.path.expanduser('~')!r}\n"  # noqa: PTH111
    commit = repository.commit(
        {
            "mlops_sdk/__init__.py": "COLOUR = 'green'\n",
            "tests/test_colour.py": GREEN,
            "tests/test_surroundings.py": surroundings + home,
        }
    )
    store = ObjectStore(MemoryS3(), "bucket")
    green = check_commit(store, repository.at(commit), ["tests"], cache=cache)
    assert green.summary.startswith("3 passed")
    assert store.get(green.log.removeprefix("s3://bucket/"))
    started: list[int] = []
    assert check_commit(store, repository.at(commit), ["tests"], cache=cache, on_start=started.append) == green
    assert started == []  # what was green is not tested again


def test_the_roots_of_packages_are_those_that_the_project_names(repository):
    hatch = '[tool.hatch.build]\ndev-mode-dirs = [".", "pipelines", "missing"]\n'
    repository.commit({"pyproject.toml": hatch, "pipelines/x/__init__.py": ""})
    folder = repository.folder
    assert source.source_roots(folder) == [folder, folder / "pipelines"]


@pytest.mark.parametrize("path", ["-x", "--pdb", "../other", "/etc"])
def test_a_path_of_tests_stays_in_the_tree(repository, tmp_path, path):
    with pytest.raises(SourceError):
        source.test_program(repository.folder, [path], tmp_path / "log")


@pytest.mark.slow
def test_tests_that_take_too_long_are_ended_with_everything_they_started(repository, tmp_path):
    started = tmp_path / "pid"
    body = (
        "import subprocess, pathlib\n\n\ndef test_it():\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "    child.wait()\n"
    )
    repository.commit({"test_slow.py": body})
    with pytest.raises(RedCommit, match="not done after"):
        source.test_program(repository.folder, ["test_slow.py"], tmp_path / "log", timeout_s=20.0)
    stat = Path(f"/proc/{started.read_text()}/stat")
    assert not stat.exists() or stat.read_text().split(") ")[1][0] == "Z"


@pytest.mark.slow
def test_a_red_commit_is_refused_and_its_log_is_kept(repository, cache):
    store = ObjectStore(MemoryS3(), "bucket")
    commit = repository.commit({"tests/test_red.py": "def test_it():\n    assert 1 == 2, 'the reason'\n"})
    store.put(f"tests/{commit}/1.log", b"of an earlier try")
    with pytest.raises(RedCommit, match="1 failed") as red:
        check_commit(store, repository.at(commit), ["tests"], cache=cache)
    assert f"s3://bucket/tests/{commit}/2.log" in red.value.next_step
    assert b"the reason" in (store.get(f"tests/{commit}/2.log") or b"")
    assert [path.name for path in (checkout(repository.at(commit), cache) / "tests").iterdir()] == ["test_red.py"]


@pytest.mark.slow
def test_a_commit_without_tests_is_red(repository, cache):
    commit = repository.commit({"tests/empty.txt": ""})
    with pytest.raises(RedCommit):
        check_commit(ObjectStore(MemoryS3(), "bucket"), repository.at(commit), ["tests"], cache=cache)
