"""The code of a job as one content-addressed object: our wheel, the program's tree, the locked requirements.

    wheel/<our wheel>        built from the sources, so that what runs on the machines is what was committed
    program/...              the user's program tree, if there is one; first on the path of the ranks
    requirements.txt         what the machine's image must have, exactly (``name==version`` lines)

Equal content gives equal bytes: names sorted, times and owners zero. `bundles/<sha256>.tar` is written once.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

import mlops_sdk
from mlops_sdk.errors import BundleError, SettingsError
from mlops_sdk.objects import ObjectStore
from mlops_sdk.training.spec import BundleRef, DataRef

DISTRIBUTION = "openinfra-mlops"
_SKIPPED = {"__pycache__", ".git", ".venv", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"}
_EPOCH = "1580601600"  # hatchling's own default: 2020-02-02
_BLOCK = 1 << 20


def put_bundle(
    store: ObjectStore,
    *,
    program: Path | None = None,
    requirements: str | None = None,
    wheel: Path | None = None,
    source: Path | None = None,
) -> BundleRef:
    """Make the bundle and store it, unless it is there already.

    Args:
        store: Where to.
        program: A directory whose content becomes importable on the machines.
        requirements: Text of a lock file; hashes and comments are allowed. By default the source tree's lock of the
            image, or nothing outside of a source tree.
        wheel: Our wheel; by default `MLOPS_WHEEL`, else it is built from the source tree.
        source: A checkout of this project to build from instead of the one that the library runs from.

    Raises:
        BundleError: when another object is stored under this hash.
        SettingsError: when there is neither a wheel nor a source tree, or `source` is none.
    """
    files = {f"wheel/{name}": body for name, body in [our_wheel(wheel, source)]}
    if program is not None:
        files |= {f"program/{name}": body for name, body in read_tree(program).items()}
    files["requirements.txt"] = (locked_requirements(source) if requirements is None else requirements).encode()
    body = pack(files)
    ref = BundleRef(sha256=hashlib.sha256(body).hexdigest(), size=len(body))
    if not store.put_if_absent(ref.key, body):
        raise BundleError(
            f"object {ref.key!r} is not what its name says",
            seen=f"expected SHA-256 {ref.sha256}, the stored bytes differ",
            next_step=f"find out who wrote it, delete it from bucket {store.bucket!r} and try again",
        )
    return ref


def put_data(store: ObjectStore, path: Path) -> DataRef:
    """Store an input file as ``data/<sha256>/<name>``; one that is there already is not sent again."""
    digest = hash_file(path)
    ref = DataRef(name=path.name, sha256=digest, size=path.stat().st_size, key=f"data/{digest}/{path.name}")
    if not any(found.key == ref.key and found.size == ref.size for found in store.list(ref.key)):
        store.upload(ref.key, path)
    return ref


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def pack(files: Mapping[str, bytes]) -> bytes:
    """A deterministic tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(files[name]), 0o644, 0
            archive.addfile(info, io.BytesIO(files[name]))
    return buffer.getvalue()


def read_tree(root: Path) -> dict[str, bytes]:
    """All regular files below a directory by relative name, without caches and version control.

    Raises:
        BundleError: the directory is missing, or a link in it leads outside.
    """
    if not root.is_dir():
        raise BundleError(f"program directory {str(root)!r} does not exist", next_step="name an existing directory")
    base, found = root.resolve(), dict[str, bytes]()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if _SKIPPED.intersection(relative.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(base):
            raise BundleError(
                f"program file {str(path)!r} leads out of its directory",
                seen=str(path.resolve()),
                next_step="copy the file into the program directory",
            )
        found[relative.as_posix()] = path.read_bytes()
    return found


def our_wheel(wheel: Path | None = None, source: Path | None = None) -> tuple[str, bytes]:
    """File name and bytes of this library's wheel: the one given, `MLOPS_WHEEL`, or one built from the source tree."""
    from_environment = os.environ.get("MLOPS_WHEEL") if source is None else None
    named = wheel or (Path(from_environment) if from_environment else None)
    if named is not None:
        if not named.is_file():
            raise SettingsError(f"wheel {str(named)!r} does not exist", next_step="correct MLOPS_WHEEL or unset it")
        return named.name, named.read_bytes()
    root = _source_tree(source)
    if root is None:
        raise SettingsError(
            f"no wheel of {DISTRIBUTION} to send to the machines",
            seen=f"the library runs from {mlops_sdk.__file__!r}, which is not in its source tree",
            next_step="set MLOPS_WHEEL to the wheel file that was installed here",
        )
    return _build_wheel(root)


def locked_requirements(source: Path | None = None) -> str:
    """What the image is built from, by the source tree given or the one the library runs from; without one ""."""
    root = _source_tree(source)
    locks = [root / "requirements" / name for name in ("image.txt", "torch.txt")] if root else []
    return "".join(lock.read_text() for lock in locks if lock.is_file())


def _source_tree(source: Path | None) -> Path | None:
    root = (source or Path(mlops_sdk.__file__).parent.parent).resolve()
    project = root / "pyproject.toml"
    if project.is_file() and tomllib.loads(project.read_text()).get("project", {}).get("name") == DISTRIBUTION:
        return root
    if source is None:
        return None
    raise SettingsError(
        f"{str(source)!r} is not a checkout of {DISTRIBUTION}",
        seen=f"{project} is missing or names another project",
        next_step="run from the top folder of a checkout",
    )


def _build_wheel(root: Path) -> tuple[str, bytes]:
    try:
        from hatchling.builders.wheel import WheelBuilder  # noqa: PLC0415 - needed only to run from sources
    except ImportError:
        raise SettingsError(
            "the wheel cannot be built from the source tree",
            seen="hatchling is not installed",
            next_step="pip install hatchling, or set MLOPS_WHEEL",
        ) from None
    os.environ.setdefault("SOURCE_DATE_EPOCH", _EPOCH)
    with tempfile.TemporaryDirectory() as directory:
        built = Path(next(iter(WheelBuilder(str(root)).build(directory=directory, versions=["standard"]))))
        return built.name, built.read_bytes()
