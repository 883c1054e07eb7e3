"""Files of :func:`torch.save` with a seal: a SHA-256 over every byte, in the comment that a zip archive may end with.

Neither torch nor zip would notice all damage: torch's reader looks at no checksum, and zip's cover the members alone,
not what lies between them. Any reader of zip archives, :func:`torch.load` among them, skips the comment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

_MARK = b"SHA-256 of all before: "
_DIGEST = 2 * hashlib.sha256().digest_size
_NO_COMMENT = b"\0\0"
"""An archive without a comment ends with the comment's length, two bytes."""

_SEAL = (len(_MARK) + _DIGEST).to_bytes(2, "little") + _MARK
"""What stands before the digest, instead of :data:`_NO_COMMENT`."""

_BLOCK = 1 << 20


class DamagedFileError(ValueError):
    """The file is not as it was written."""


class UnsealedFileError(DamagedFileError):
    """The file does not end with a seal: it was cut off, or something else wrote it."""


class _Hashed:
    """A file that is hashed as it is written, which remembers what went wrong: torch reports another error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` to ``path``, down to the disk.

    Raises:
        OSError: If it cannot be written, as where the disk is full.
    """
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(dict(content), hashed)  # type: ignore[arg-type]  # of a file it only needs these two
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        file.write(_SEAL + hashed.digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: Path) -> None:
    """Raises a :class:`DamagedFileError` unless every byte of the file is as :func:`save_sealed` wrote it."""
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END) - len(_SEAL) - _DIGEST
        if left < 0:
            raise UnsealedFileError("it is cut off")
        digest = hashlib.sha256()
        file.seek(0)
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise DamagedFileError("it is cut off")
            digest.update(block)
            left -= len(block)
        digest.update(_NO_COMMENT)
        seal = file.read()
    if not seal.startswith(_SEAL):
        raise UnsealedFileError("it is cut off, or its end is not as it was written")
    if seal.removeprefix(_SEAL) != digest.hexdigest().encode():
        raise DamagedFileError("its content is not what its SHA-256 says")
