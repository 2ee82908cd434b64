"""The data: source files of one or several kinds, split by file, tokenised with a BPE trained on the train part.

Prepared data is one safetensors file: tokens and text of both parts, the tokenizer, and what it was made from. Its
SHA-256 is the data hash, under which it is stored (``data/<hash>/code_lm.safetensors``) and checked on every machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_pipelines.programs.code_lm.sources import (
    Kind,
    SourceFile,
    canonical_hash,
    corpus_files,
    is_held_out,
    path_hash,
)
from mlops_sdk.errors import BundleError
from mlops_sdk.objects import ObjectStore, to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

FILE_NAME = "code_lm.safetensors"
END_OF_FILE = "<|endoftext|>"

Part = Literal["train", "held_out"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(_Model):
    """One part of the corpus: its files by kind and path, `sizes[i]` bytes and `token_counts[i]` tokens each."""

    kinds: tuple[Kind, ...]
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    token_counts: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the part."""
        return sum(self.sizes)

    @property
    def tokens(self) -> int:
        """Tokens of the part, the one before each file included."""
        return sum(self.token_counts)


class Meta(_Model):
    """What prepared data consists of. `corpus_sha256` is the `canonical_hash` of the sources.

    Version 2 knows kinds; what is held out of the standard library is the same as in version 1.
    """

    version: Literal[2] = 2
    python: str
    kinds: tuple[Kind, ...]
    corpus_sha256: str
    vocabulary: int
    train: Split
    held_out: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """Prepared data on disk: one file, its hash and size."""

    path: Path
    sha256: str
    size: int
    meta: Meta

    @classmethod
    def open(cls, path: Path) -> PreparedData:
        """Prepared data from its file.

        Raises:
            BundleError: the file is not prepared data of this version.
        """
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - extra [train]

        try:
            with safe_open(path, framework="np") as file:
                meta = Meta.model_validate_json((file.metadata() or {}).get("meta", ""))
        except (OSError, SafetensorError, ValidationError) as error:
            raise BundleError(
                f"{str(path)!r} is not prepared data that this version of the program can read",
                seen=str(error).splitlines()[0],
                next_step="prepare the data with the same version of the program",
            ) from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path=path, sha256=digest, size=path.stat().st_size, meta=meta)

    @property
    def key(self) -> str:
        """Its key in the bucket."""
        return f"data/{self.sha256}/{FILE_NAME}"

    def tokens(self, part: Part) -> list[NDArray[np.uint16]]:
        """Token ids, file by file; each file begins with the end-of-file token."""
        return _cut(self._array(f"{part}.tokens"), self._split(part).token_counts)

    def stream(self, part: Part) -> NDArray[np.uint16]:
        """Token ids of all files one after the other."""
        return self._array(f"{part}.tokens")

    def text(self, part: Part, kind: Kind | None = None) -> list[bytes]:
        """The files' bytes: of one kind, or of all."""
        split = self._split(part)
        files = [a.tobytes() for a in _cut(self._array(f"{part}.text"), split.sizes)]
        return [text for text, of in zip(files, split.kinds, strict=True) if kind in {None, of}]

    def tokenizer_json(self) -> bytes:
        """The ``tokenizer.json`` of the byte-level BPE."""
        return self._array("tokenizer").tobytes()

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - extra [train]

        return Tokenizer.from_str(self.tokenizer_json().decode())

    def _split(self, part: Part) -> Split:
        return self.meta.train if part == "train" else self.meta.held_out

    def _array(self, name: str) -> NDArray[Any]:
        from safetensors import safe_open  # noqa: PLC0415 - extra [train]

        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(name)


def prepare(
    out_dir: Path,
    *,
    vocabulary: int = 4096,
    kinds: Iterable[str] = ("python",),
    files: Sequence[SourceFile] | None = None,
) -> PreparedData:
    """Build the data in `out_dir`: train the BPE on the train part, tokenise both parts, write one file.

    Deterministic: the same sources and vocabulary give the same data hash. `files` are taken instead of the corpora of
    these kinds.

    Raises:
        BundleError: a kind has no train or no held-out part.
        SettingsError: a corpus does not exist or is not installed.
    """
    import numpy as np  # noqa: PLC0415 - extra [train]
    from safetensors.numpy import save_file  # noqa: PLC0415 - extra [train]

    sources = sorted(corpus_files(kinds) if files is None else files, key=lambda f: (f.kind, f.path))
    parts = _parts(sources)
    tokenizer = _train_tokenizer(parts["train"], vocabulary)
    arrays: dict[str, NDArray[Any]] = {"tokenizer": _as_array(tokenizer.to_str().encode())}
    splits: dict[Part, Split] = {}
    for part, members in parts.items():
        encoded = encode_files(tokenizer, [f.text for f in members])
        arrays[f"{part}.tokens"] = np.concatenate([np.array(ids, dtype=np.uint16) for ids in encoded])
        arrays[f"{part}.text"] = _as_array(b"".join(f.text for f in members))
        splits[part] = Split(
            kinds=tuple(f.kind for f in members),
            paths=tuple(f.path for f in members),
            sizes=tuple(len(f.text) for f in members),
            token_counts=tuple(len(ids) for ids in encoded),
        )
    meta = Meta(
        python=platform.python_version(),
        kinds=tuple(sorted({f.kind for f in sources})),
        corpus_sha256=canonical_hash(sources),
        vocabulary=tokenizer.get_vocab_size(),
        train=splits["train"],
        held_out=splits["held_out"],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / FILE_NAME
    scratch = out_dir / f".{FILE_NAME}.{os.getpid()}"
    save_file(arrays, scratch, metadata={"meta": to_json(meta.model_dump(mode="json")).decode()})
    scratch.replace(path)  # another job may be reading, or preparing the same
    return PreparedData.open(path)


def prepared(
    out_dir: Path,
    *,
    vocabulary: int = 4096,
    kinds: Iterable[str] = ("python",),
    roots: Mapping[str, str] | None = None,
) -> PreparedData:
    """`prepare`, unless `out_dir` already holds what was made of the same sources with the same vocabulary.

    `roots` are folders to take instead of the corpora that are installed (see `sources.corpus_files`).
    """
    sources = corpus_files(kinds, roots)
    try:
        found = PreparedData.open(out_dir / FILE_NAME)
    except BundleError:
        return prepare(out_dir, vocabulary=vocabulary, files=sources)
    same = found.meta.corpus_sha256 == canonical_hash(sources) and found.meta.vocabulary == vocabulary
    return found if same else prepare(out_dir, vocabulary=vocabulary, files=sources)


def build(folder: Path, **arguments: Any) -> Path:
    """:func:`prepared`, for those who want the file."""
    return prepared(folder, **arguments).path


def samples(data: PreparedData, limit: int) -> dict[Kind, list[int]]:
    """Which held-out files to measure on, per kind: in the order of their paths' hashes, those that still fit.

    `limit` is in bytes of each kind; the smallest file if none fits. The same files for every model and for the
    baseline; those of one kind do not depend on which other kinds there are.
    """
    split = data.meta.held_out
    return {
        kind: _sample([i for i, of in enumerate(split.kinds) if of == kind], split, limit) for kind in data.meta.kinds
    }


def sample(data: PreparedData, limit: int) -> list[int]:
    """The files of :func:`samples` of all kinds together."""
    return sorted(index for chosen in samples(data, limit).values() for index in chosen)


def upload(data: PreparedData, store: ObjectStore) -> None:
    """Store prepared data under its hash; what is there already is left alone."""
    store.put_if_absent(data.key, data.path.read_bytes())


def encode_files(tokenizer: Tokenizer, texts: Sequence[bytes]) -> list[list[int]]:
    """Token ids of each file, preceded by the end-of-file token (which is also the start of a file)."""
    end = tokenizer.encode(END_OF_FILE).ids
    return [[*end, *encoding.ids] for encoding in tokenizer.encode_batch([t.decode() for t in texts])]


def _train_tokenizer(files: Sequence[SourceFile], vocabulary: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - extra [train]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_FILE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f.text.decode() for f in files), trainer=trainer)
    return tokenizer


def _parts(sources: Sequence[SourceFile]) -> dict[Part, list[SourceFile]]:
    """Train and held-out part; every kind is in both."""
    parts: dict[Part, list[SourceFile]] = {
        "train": [f for f in sources if not is_held_out(f.path)],
        "held_out": [f for f in sources if is_held_out(f.path)],
    }
    kinds = {f.kind for f in sources}
    if not kinds or any({f.kind for f in members} != kinds for members in parts.values()):
        raise BundleError(
            "the corpus has no train or no held-out part",
            seen=", ".join(
                f"{sum(f.kind == kind for f in members)} files in {part} of {kind or 'any kind'}"
                for kind in sorted(kinds) or [""]
                for part, members in parts.items()
            ),
            next_step="use a Python that has its standard library's sources installed, or more files of your own",
        )
    return parts


def _sample(among: Sequence[int], split: Split, limit: int) -> list[int]:
    chosen: list[int] = []
    left = limit
    for index in sorted(among, key=lambda i: path_hash(split.paths[i])):
        if split.sizes[index] <= left:
            chosen.append(index)
            left -= split.sizes[index]
    return sorted(chosen) or [min(among, key=lambda i: split.sizes[i])]


def _as_array(body: bytes) -> NDArray[np.uint8]:
    import numpy as np  # noqa: PLC0415 - extra [train]

    return np.frombuffer(body, dtype=np.uint8)


def _cut(array: NDArray[Any], lengths: Iterable[int]) -> list[NDArray[Any]]:
    out: list[NDArray[Any]] = []
    start = 0
    for length in lengths:
        out.append(array[start : start + length])
        start += length
    return out
