"""Downloads, from a server in this process: resumed, checked, and whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from file_server import CHUNK, CONTENT, SHA256, Server, serving

from tsjt_pyg.datasets import download as module
from tsjt_pyg.datasets.download import download

WRONG = hashlib.sha256(b"another file").hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(server: Server, path: Path, after: int = 5 * CHUNK) -> None:
    """A download that ended after some bytes, for good."""
    server.breaks = [after]
    with pytest.raises(ConnectionError, match=f"{after} bytes are kept in .*; call again to continue"):
        download(server.url, path, SHA256, attempts=1)
    assert not path.exists()
    assert (path.parent / f".{path.name}.part").read_bytes() == CONTENT[:after]
    server.requests.clear()


def test_the_file_is_there_and_nothing_else(server, tmp_path):
    path = tmp_path / "speed.csv"
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, str(path), SHA256.upper(), progress=lambda *at: seen.append(at)) == path
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["speed.csv"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_bytes(CONTENT)
    download(server.url, path, SHA256)
    assert server.requests == []


def test_another_file_is_not_overwritten(server, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_bytes(b"my own readings")
    with pytest.raises(ValueError, match=rf"speed\.csv: another file lies here \(SHA-256 \w+, expected {SHA256}\)"):
        download(server.url, path, SHA256)
    assert path.read_bytes() == b"my own readings"
    assert server.requests == []


def test_a_wrong_checksum(server, tmp_path):
    with pytest.raises(ValueError, match=f"wrong checksum: expected SHA-256 {WRONG}, found {SHA256}.*removed"):
        download(server.url, tmp_path / "speed.csv", WRONG)
    assert names(tmp_path) == []


def test_a_broken_download_is_continued(server, tmp_path):
    path = tmp_path / "speed.csv"
    break_off(server, path)
    seen: list[tuple[int, int | None]] = []
    download(server.url, path, SHA256, progress=lambda *at: seen.append(at))
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["speed.csv"]
    assert [r["Range"] for r in server.requests] == [f"bytes={5 * CHUNK}-"]
    assert server.requests[0]["If-Range"] == '"first"'
    assert seen[0][0] > 5 * CHUNK
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_one_call_takes_a_broken_connection_up_again(server, tmp_path, caplog):
    path = tmp_path / "speed.csv"
    server.breaks = [CHUNK, 2 * CHUNK]
    with caplog.at_level(logging.WARNING):
        download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [None, f"bytes={CHUNK}-", f"bytes={3 * CHUNK}-"]
    assert caplog.text.count("trying again") == 2


def test_a_server_without_ranges_starts_again(server, tmp_path):
    path = tmp_path / "speed.csv"
    break_off(server, path)
    server.ranges = False
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_file_that_changed_on_the_server_is_begun_anew(server, tmp_path):
    path = tmp_path / "speed.csv"
    break_off(server, path)
    server.content, server.etag = CONTENT[::-1], '"second"'
    download(server.url, path, hashlib.sha256(server.content).hexdigest())
    assert path.read_bytes() == CONTENT[::-1]
    assert server.requests[0]["If-Range"] == '"first"'


@pytest.mark.parametrize(
    ("etag", "headers", "expected"),
    [
        ('W/"weak"', {"Last-Modified": "Thu, 01 Mar 2012 00:00:00 GMT"}, "Thu, 01 Mar 2012 00:00:00 GMT"),
        ('W/"weak"', {}, None),
        (None, {}, None),
    ],
)
def test_what_a_range_is_tied_to(server, tmp_path, etag, headers, expected):
    path = tmp_path / "speed.csv"
    server.etag, server.headers = etag, headers
    break_off(server, path)
    if expected:
        server.etag, server.headers = expected, {}
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests[0].get("If-Range") == expected
    assert names(tmp_path) == ["speed.csv"]


@pytest.mark.parametrize("change", ["shift", "416"])
def test_a_useless_answer_to_a_range_starts_again(server, tmp_path, change):
    path = tmp_path / "speed.csv"
    break_off(server, path)
    if change == "shift":
        server.shift = 7
    else:
        server.content = CONTENT[:1000]
    expected = server.content
    download(server.url, path, hashlib.sha256(expected).hexdigest(), attempts=1)
    assert path.read_bytes() == expected
    assert [request.get("Range") for request in server.requests] == [f"bytes={5 * CHUNK}-", None]


def test_a_part_that_is_the_whole_is_only_checked(server, tmp_path):
    (tmp_path / ".speed.csv.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "speed.csv", SHA256)
    assert names(tmp_path) == ["speed.csv"]
    assert server.requests[0]["Range"] == f"bytes={len(CONTENT)}-"


def test_a_damaged_part_is_found_by_the_checksum(server, tmp_path):
    (tmp_path / ".speed.csv.part").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=f"wrong checksum: expected SHA-256 {SHA256}"):
        download(server.url, tmp_path / "speed.csv", SHA256)
    assert names(tmp_path) == []
    download(server.url, tmp_path / "speed.csv", SHA256)
    assert names(tmp_path) == ["speed.csv"]


def test_ctrl_c_keeps_the_part(server, tmp_path):
    path = tmp_path / "speed.csv"

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, path, SHA256, progress=stop)
    kept = (tmp_path / ".speed.csv.part").read_bytes()
    assert 0 < len(kept) < len(CONTENT)
    assert CONTENT.startswith(kept)
    download(server.url, path, SHA256)
    assert server.requests[1]["Range"] == f"bytes={len(kept)}-"
    assert names(tmp_path) == ["speed.csv"]


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
def test_no_answer_in_time(server, tmp_path, when):
    if when == "in the middle":
        server.breaks, server.stalls = [CHUNK], True
        kept = f"{CHUNK} bytes are kept in .*call again to continue"
    else:
        server.waits = True
        kept = "call again to start anew"
    with pytest.raises(TimeoutError, match=rf"speed\.csv: no answer within 0\.3 s; {kept}"):
        download(server.url, tmp_path / "speed.csv", SHA256, timeout=0.3, attempts=1)
    assert "speed.csv" not in names(tmp_path)


def test_nobody_listens(tmp_path):
    closed = Server()
    closed.server_close()
    with pytest.raises(ConnectionError, match=r"the connection failed or broke .*; call again to start anew"):
        download(closed.url, tmp_path / "speed.csv", SHA256)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (503, 3)])
def test_the_server_refuses(server, tmp_path, status, attempts):
    server.status = status
    with pytest.raises(OSError, match=f"the server answers {status} "):
        download(server.url, tmp_path / "speed.csv", SHA256)
    assert len(server.requests) == attempts  # what will not mend itself is not asked for again
    assert names(tmp_path) == []


def test_a_full_disk_keeps_what_is_there(server, tmp_path, monkeypatch):
    path = tmp_path / "speed.csv"

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            room = 500_000 - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[:room])

    with monkeypatch.context() as patch:
        patch.setattr(module, "FileIO", Full)
        with pytest.raises(OSError, match=r"speed\.csv\.part: the disk is full; make room and call again") as caught:
            download(server.url, path, SHA256)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / ".speed.csv.part").read_bytes() == CONTENT[:500_000]
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


def test_no_room_is_said_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=f"{len(CONTENT)} bytes are to come, 1000 are free on the disk of") as caught:
        download(server.url, tmp_path / "speed.csv", SHA256)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks there")
def test_two_at_a_time_download_once(server, tmp_path, caplog):
    path = tmp_path / "speed.csv"
    server.waits = True
    waiting = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: waiting.set() if "waiting for it" in record.getMessage() else None  # type: ignore
    module.logger.addHandler(handler)
    found: list[Any] = []

    def fetch() -> None:
        try:
            found.append(download(server.url, path, SHA256))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        assert waiting.wait(10)
        server.go_on.set()
        for thread in threads:
            thread.join(10)
    finally:
        module.logger.removeHandler(handler)
    assert found == [path, path]
    assert len(server.requests) == 1
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["speed.csv"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sha256": "1234"}, ValueError, "sha256: expected 64 hexadecimal digits, found '1234'"),
        ({"url": "ftp://example.org/a"}, ValueError, "url: expected http:// or https://, found 'ftp://example.org/a'"),
        ({"url": "http://"}, ValueError, "url: 'http://' is malformed"),
        ({"attempts": 0}, ValueError, "attempts: expected at least 1, found 0"),
        ({"path": "nowhere/a.csv"}, FileNotFoundError, "a.csv: the folder .*nowhere does not exist; create it"),
    ],
)
def test_malformed_arguments(tmp_path, arguments, error, message):
    good = {"url": "http://127.0.0.1:9/a", "path": "a.csv", "sha256": SHA256} | arguments
    with pytest.raises(error, match=message):
        download(**{**good, "path": tmp_path / good["path"]})
    assert names(tmp_path) == []
