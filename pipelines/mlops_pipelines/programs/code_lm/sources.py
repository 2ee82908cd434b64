"""The source files of the corpora, by kind: what belongs to one, in which order, and in which part.

`python` is the standard library of the running Python; `cpp` a fixed sample of the C++ headers that the torch wheel
brings. Both are curated: generated files, duplicates, empty files and what is not UTF-8 are left out. A folder of your
own takes the place of either, and is taken as it is: validation says what is wrong with it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, cast, get_args

from mlops_sdk.errors import SettingsError

Kind = Literal["python", "cpp"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SUFFIXES: Mapping[Kind, tuple[str, ...]] = {"python": (".py",), "cpp": (".h", ".hpp", ".cuh")}

# Python: test suites and third-party code; generated tables; bundled applications; what 3.12 removed.
_SKIP = (
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    | {"encodings", "pydoc_data", "__phello__"}
    | {"idlelib", "tkinter", "turtledemo", "ensurepip"}
    | {"lib2to3", "distutils", "msilib"}
)
_SKIP_PREFIXES = ("config-", "_sysconfigdata")
# C++: thousands of generated operator declarations and whatever else a program wrote.
_GENERATED = ("ATen/ops/", "sleef.h")
_GENERATED_WORDS = (
    "generated",
    ".pb.h",
    "redispatchfunctions",
    "registrationdeclarations",
    "mem_eff_attention/kernels",
)
_LARGEST_HEADER = 200_000
_CPP_BYTES = 5_000_000  # less than the standard library's, so that what is known stays the larger part

_HELD_OUT_SHARE = 0.1
_SPLIT_SALT = "code-lm-split-1"
_CHOICE_SALT = "code-lm-choice-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a corpus: its kind, path relative to the corpus's root, and bytes."""

    kind: Kind
    path: str
    text: bytes


def corpus_files(kinds: Iterable[str], roots: Mapping[str, str] | None = None) -> list[SourceFile]:
    """All files of the corpora, by kind and path.

    Args:
        kinds: Which corpora.
        roots: Per kind a folder to take instead of the one that comes with Python or torch, as it is.

    Raises:
        SettingsError: a kind that does not exist, or a corpus that is not installed.
    """
    given = dict(roots or {})
    files: list[SourceFile] = []
    for kind in sorted(checked_kinds(kinds)):
        files.extend(folder(kind, Path(given[kind])) if kind in given else _READERS[kind]())
    return files


def checked_kinds(kinds: Iterable[str]) -> tuple[Kind, ...]:
    """The kinds, each once, in order.

    Raises:
        SettingsError: one does not exist, or there is none.
    """
    wanted = sorted(set(kinds))
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown or not wanted:
        raise SettingsError(
            f"there is no corpus of kind {unknown[0]!r}" if unknown else "no corpus was named",
            seen=f"kinds: {', '.join(wanted) or 'none'}",
            next_step=f"choose from: {', '.join(KINDS)}",
        )
    return tuple(cast("Kind", kind) for kind in wanted)


def standard_library(root: Path | None = None) -> list[SourceFile]:
    """The sources of the running Python's standard library, sorted by path, without duplicates."""
    base = root or Path(sysconfig.get_path("stdlib"))
    return list(_curated(_read("python", base, skip=_skipped_python)))


def cpp_headers(root: Path | None = None, *, limit: int = _CPP_BYTES) -> list[SourceFile]:
    """Hand-written headers of the torch wheel, sorted by path, without duplicates; whole files of about `limit` bytes.

    Which ones follows from their paths alone. torch itself is not imported: its headers are found beside it.
    """
    base = root or _torch_headers()
    files = [file for file in _curated(_read("cpp", base, skip=_generated)) if len(file.text) <= _LARGEST_HEADER]
    chosen: list[SourceFile] = []
    left = limit
    for file in sorted(files, key=lambda file: path_hash(file.path, _CHOICE_SALT)):
        if left <= 0:
            break
        chosen.append(file)
        left -= len(file.text)
    return sorted(chosen, key=lambda file: file.path)


def folder(kind: Kind, root: Path) -> list[SourceFile]:
    """Every file of a kind below a folder, as it is, sorted by path.

    Raises:
        SettingsError: there is no such folder.
    """
    if not root.is_dir():
        raise SettingsError(
            f"the corpus folder {str(root)!r} does not exist", next_step="name a folder of source files"
        )
    return list(_read(kind, root))


def is_held_out(path: str) -> bool:
    """Whether a file belongs to the held-out part: decided by its path alone, so that it never moves."""
    return path_hash(path) < _HELD_OUT_SHARE


def is_utf8(text: bytes) -> bool:
    """Whether it can be decoded."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def canonical_hash(files: Iterable[SourceFile]) -> str:
    """SHA-256 over (kind and path length, kind and path, text length, text) of every file by kind and path."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: (f.kind, f.path)):
        name = f"{file.kind}/{file.path}".encode()
        digest.update(len(name).to_bytes(8, "big") + name + len(file.text).to_bytes(8, "big") + file.text)
    return digest.hexdigest()


def path_hash(path: str, salt: str = _SPLIT_SALT) -> float:
    """A number in [0, 1) that depends on the path (and the salt) alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{path}".encode()).digest()[:8], "big") / 2**64


def _read(kind: Kind, base: Path, *, skip: Callable[[PurePosixPath], bool] = lambda _: False) -> Iterator[SourceFile]:
    names = {path: PurePosixPath(path.relative_to(base)) for path in base.rglob("*") if path.suffix in _SUFFIXES[kind]}
    for path, name in sorted(names.items(), key=lambda item: str(item[1])):
        if not skip(name) and path.is_file():
            yield SourceFile(kind=kind, path=str(name), text=path.read_bytes())


def _curated(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    seen: set[bytes] = set()
    for file in files:
        digest = hashlib.sha256(file.text).digest()
        if file.text and digest not in seen and is_utf8(file.text):
            seen.add(digest)
            yield file


def _skipped_python(path: PurePosixPath) -> bool:
    return bool(_SKIP.intersection(path.parts)) or any(part.startswith(_SKIP_PREFIXES) for part in path.parts)


def _generated(path: PurePosixPath) -> bool:
    return str(path).startswith(_GENERATED) or any(word in str(path).lower() for word in _GENERATED_WORDS)


def _torch_headers() -> Path:
    found = importlib.util.find_spec("torch")
    for location in (found.submodule_search_locations or []) if found else []:
        headers = Path(location) / "include"
        if headers.is_dir():
            return headers
    raise SettingsError(
        "the corpus 'cpp' is not installed here",
        seen="no headers beside the package torch" if found else "there is no package torch",
        next_step="install openinfra-mlops[train], or give a folder of headers as its root",
    )


_READERS = {"python": standard_library, "cpp": cpp_headers}
