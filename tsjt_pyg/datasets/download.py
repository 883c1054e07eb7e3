"""Files from the web: resumed where they broke off, checked by SHA-256, and there whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import requests

from .cards import sha256_of

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and all bytes (``None``: the server does not say)."""

_CHUNK = 1 << 16
_PAUSE = 1.0
"""Seconds before another attempt."""


def download(
    url: str,
    path: str | Path,
    sha256: str,
    *,
    timeout: float = 30.0,
    attempts: int = 3,
    progress: Progress | None = None,
) -> Path:
    """Downloads ``url`` to ``path`` and checks it.

    Bytes are collected in a hidden file beside ``path`` (``.NAME.part``), which is locked while it is written: another
    process that wants the same file waits for it. It becomes ``path`` when its SHA-256 is right. If the connection
    breaks, the disk is full or the user presses Ctrl-C, the part stays, and the next call continues it by an HTTP
    ``Range`` request, tied by ``If-Range`` to the ETag (or the date) of the file that was begun. A server that does not
    support ranges, or whose file has changed, sends the whole file again.

    Args:
        url: ``http://`` or ``https://``.
        path: File to write; a file that is there already and has the checksum is left alone.
        sha256: Its SHA-256, 64 hexadecimal digits.
        timeout: Seconds without an answer before an attempt is given up.
        attempts: How often a broken connection is taken up again before the call gives up.
        progress: Called after every chunk; see :func:`~tsjt_pyg.training.progress_bar`.

    Returns:
        ``path``.

    Raises:
        ValueError: If the checksum is wrong (the part is removed), the file at ``path`` is another one, or an argument
            is malformed.
        FileNotFoundError: If the folder of ``path`` does not exist.
        TimeoutError: If the server does not answer in time.
        ConnectionError: If the connection cannot be made or breaks.
        OSError: If the server refuses, or the disk is full.
    """
    path, sha256 = Path(path), sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256: expected 64 hexadecimal digits, found {sha256!r}")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url: expected http:// or https://, found {url!r}")
    if attempts < 1:
        raise ValueError(f"attempts: expected at least 1, found {attempts}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it or choose another")
    if _is_there(path, sha256):
        return path
    part = path.with_name(f".{path.name}.part")
    validator = path.with_name(f".{path.name}.part.etag")
    with _locked(part) as file:
        try:
            if _is_there(path, sha256):  # another process was faster
                _remove(part)
                return path
            for attempt in range(1, attempts + 1):
                try:
                    _fetch(url, file, part, validator, timeout, progress)
                    break
                except (TimeoutError, ConnectionError) as error:
                    if attempt == attempts:
                        raise
                    logger.warning("%s; trying again", error)
                    time.sleep(_PAUSE)
            os.fsync(file.fileno())
            found = sha256_of(part)
            if found != sha256:
                _remove(part, validator)
                raise ValueError(
                    f"{url}: wrong checksum: expected SHA-256 {sha256}, found {found}. What was downloaded is removed; "
                    "the file has changed there, or something in between changes it"
                )
            part.replace(path)
            _remove(validator)
            return path
        finally:
            if _is_open(part, file) and not part.stat().st_size:
                _remove(part, validator)


def _is_there(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    found = sha256_of(path) if path.is_file() else "that of a folder"
    if found != sha256:
        raise ValueError(
            f"{path}: another file lies here (SHA-256 {found}, expected {sha256}); it is not overwritten: move it away"
        )
    return True


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _is_open(part: Path, file: FileIO) -> bool:
    """Whether ``file`` is still what lies at ``part``; others may remove or rename it, and begin another."""
    return part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino


@contextmanager
def _locked(part: Path) -> Iterator[FileIO]:
    """``part``, open for appending by this process alone."""
    try:
        import fcntl
    except ImportError:  # no such locks here (Windows): processes may meet, and the checksum tells
        with FileIO(part, "a") as file:
            yield file
        return
    while True:
        with FileIO(part, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("%s: another process is downloading this file; waiting for it", part)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_open(part, file):
                yield file
                return
        # the other process has renamed or removed it meanwhile: what was locked is not the part any more


def _fetch(url: str, file: FileIO, part: Path, validator: Path, timeout: float, progress: Progress | None) -> None:
    """Completes ``file`` by one request; by a second one where the server cannot go on from where it ends."""
    done = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if validator.is_file():
            headers["If-Range"] = validator.read_text(encoding="latin-1")
    with (
        _clear_network_errors(url, file, part, timeout),
        requests.get(url, headers=headers, stream=True, timeout=timeout) as response,
    ):
        status, answer = response.status_code, f"{url}: the server answers {response.status_code} {response.reason}"
        found = response.headers.get("Content-Range", "")
        if status == 416 and done and found.rpartition("/")[2] == str(done):
            return  # what we have is all there is
        if (status == 416 or (status == 206 and not found.startswith(f"bytes {done}-"))) and done:
            file.truncate(0)
            return _fetch(url, file, part, validator, timeout, progress)  # without a range this time
        if status >= 500:
            raise ConnectionError(answer)
        if status not in (200, 206):
            raise OSError(answer)
        if status == 200:
            file.truncate(0)
            done = 0
        _remember(response, validator)
        length = response.headers.get("Content-Length", "")
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        total = done + int(length) if length.isdigit() and not encoded else None
        _check_space(url, part, done, total)
        for chunk in response.iter_content(_CHUNK):
            _write(file, chunk, part)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if total is not None and done < total:  # older urllib3 does not notice
            raise requests.ConnectionError(f"it ended after {done} of {total} bytes")


@contextmanager
def _clear_network_errors(url: str, file: FileIO, part: Path, timeout: float) -> Iterator[None]:
    def kept() -> str:
        size = os.fstat(file.fileno()).st_size
        return f"{size} bytes are kept in {part}; call again to continue" if size else "call again to start anew"

    try:
        yield
    except requests.Timeout as error:
        raise TimeoutError(f"{url}: no answer within {timeout:g} s; {kept()}") from error
    except requests.exceptions.InvalidURL as error:
        raise ValueError(f"url: {url!r} is malformed ({error})") from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        if "timed out" in str(error).lower():  # a stall in the middle of the file
            raise TimeoutError(f"{url}: no answer within {timeout:g} s; {kept()}") from error
        raise ConnectionError(f"{url}: the connection failed or broke ({error}); {kept()}") from error
    except requests.RequestException as error:
        raise OSError(f"{url}: {error}") from error


def _remember(response: requests.Response, validator: Path) -> None:
    """Keeps what ties a later ``Range`` request to this very file."""
    etag = response.headers.get("ETag", "")
    mark = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    if mark:
        validator.write_text(mark, encoding="latin-1")
    else:
        _remove(validator)


def _check_space(url: str, part: Path, done: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - done > free:
        raise OSError(
            errno.ENOSPC, f"{url}: {total - done} bytes are to come, {free} are free on the disk of {part.parent}"
        )


def _write(file: FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno, f"{part}: the disk is full; make room and call again, what is there is kept"
        ) from error
