"""Against a server on this machine's loopback address, whose faults are chosen by the test."""

import gzip
import hashlib
import http.server
import io
import json
import random
import socket
import ssl
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slmrec.commands.data_sets import fetch as stage
from slmrec.data.public import download as fetch
from slmrec.data.public.download import RECORD, download
from slmrec.data.public.registry import DATASETS, Checksum, PublicDataset, RemoteFile, find_dataset
from slmrec.errors import DataError

CONTENT = random.Random(0).randbytes(300_000)
HALF = 150_000


@dataclass
class Shelf:
    """What the server has, how it misbehaves, and what it was asked."""

    address: str = ""
    content: bytes = CONTENT
    tag: str | None = '"v1"'
    date: str | None = None
    status: int = 200
    knows_ranges: bool = True
    heeds_if_range: bool = True
    shifts_ranges: bool = False
    says_more_bytes: int = 0
    drops_after: list[int] = field(default_factory=list)
    """Bytes after which the connection is closed, one for each answer."""
    busy_answers: int = 0
    kind: str = "application/gzip"
    ranges: list[str | None] = field(default_factory=list)
    served: list[int] = field(default_factory=list)

    def file(self, name: str = "log.gz", **known: Any) -> RemoteFile:
        return RemoteFile(f"{self.address}/{name}", **known)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        shelf: Shelf = self.server.shelf  # type: ignore[attr-defined]
        asked = self.headers["Range"]
        shelf.ranges.append(asked)
        if self.refuse(shelf):
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        same = self.headers["If-Range"] in {shelf.tag, shelf.date} or not shelf.heeds_if_range
        if not (shelf.knows_ranges and same):
            start = 0
        if start >= len(shelf.content):
            self.send_error(416)
        else:
            self.answer(shelf, start)

    def refuse(self, shelf: Shelf) -> bool:
        if shelf.busy_answers or shelf.status != 200:
            status = 503 if shelf.busy_answers else shelf.status
            shelf.busy_answers = max(shelf.busy_answers - 1, 0)
            self.send_error(status)
            return True
        return False

    def answer(self, shelf: Shelf, start: int) -> None:
        self.send_response(206 if start else 200)
        for name, value in {"Content-Type": shelf.kind, "ETag": shelf.tag, "Last-Modified": shelf.date}.items():
            if value:
                self.send_header(name, value)
        body = shelf.content[start:]
        if start:
            first, size = start + shelf.shifts_ranges, len(shelf.content)
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body) + shelf.says_more_bytes))
        self.end_headers()
        body = body[: shelf.drops_after.pop(0)] if shelf.drops_after else body
        shelf.served.append(len(body))
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setattr(fetch, "_PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(fetch, "_BLOCK_BYTES", 4096)  # so that there is a half-way
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shelf = server.shelf = Shelf(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shelf
    server.shutdown()
    thread.join()
    server.server_close()


def md5(content: bytes) -> Checksum:
    return Checksum("md5", hashlib.md5(content).hexdigest())


def sha256(content: bytes) -> Checksum:
    return Checksum("sha256", hashlib.sha256(content).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt_at(limit: int) -> fetch.OnBytes:
    def on_bytes(done: int, total: int | None) -> None:
        if done >= limit:
            raise KeyboardInterrupt

    return on_bytes


def interrupted(shelf: Shelf, folder: Path, file: RemoteFile | None = None) -> int:
    """The size of the part that an interrupted download leaves."""
    with pytest.raises(KeyboardInterrupt):
        download(file or shelf.file(), folder, interrupt_at(HALF))
    return (folder / "log.gz.part").stat().st_size


@pytest.mark.parametrize("checksum", [md5(CONTENT), sha256(CONTENT)])
def test_a_file_is_fetched_and_compared(shelf: Shelf, tmp_path: Path, checksum: Checksum) -> None:
    seen: list[tuple[int, int | None]] = []
    file = shelf.file(checksum=checksum, num_bytes=len(CONTENT))
    found = download(file, tmp_path / "a" / "b", lambda done, total: seen.append((done, total)))
    assert found == (tmp_path / "a" / "b" / "log.gz", checksum, "its publisher", True)
    assert found.path.read_bytes() == CONTENT
    assert names(found.path.parent) == ["log.gz"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_is_not_fetched_again(shelf: Shelf, tmp_path: Path) -> None:
    file = shelf.file(checksum=md5(CONTENT))
    download(file, tmp_path)
    again = download(file, tmp_path)
    assert not again.fetched
    assert len(shelf.ranges) == 1


def test_without_a_published_checksum_the_first_one_is_kept(shelf: Shelf, tmp_path: Path) -> None:
    first = download(shelf.file(), tmp_path)
    assert (first.checksum, first.compared_with) == (sha256(CONTENT), None)
    download(shelf.file("other.gz"), tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record == {"log.gz": sha256(CONTENT).digest, "other.gz": sha256(CONTENT).digest}
    again = download(shelf.file(), tmp_path)
    assert (again.compared_with, again.fetched) == (RECORD, False)
    assert len(shelf.ranges) == 2


def test_a_file_that_differs_from_the_record_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    download(shelf.file(), tmp_path).path.unlink()
    shelf.content = b"another"
    with pytest.raises(
        DataError, match=rf"log.gz: its checksum is {sha256(b'another')}, expected .* of {RECORD}; the downloaded"
    ):
        download(shelf.file(), tmp_path)
    assert names(tmp_path) == [RECORD]


def test_a_wrong_checksum_names_both_and_removes_what_came(shelf: Shelf, tmp_path: Path) -> None:
    wanted = md5(b"what was published")
    with pytest.raises(DataError, match=f"its checksum is {md5(CONTENT)}, expected {wanted} of its publisher"):
        download(shelf.file(checksum=wanted), tmp_path)
    assert names(tmp_path) == []


def test_a_file_of_the_user_is_never_changed(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"log\.gz: its checksum is md5 .*move it away"):
        download(shelf.file(checksum=md5(CONTENT)), tmp_path)
    assert (tmp_path / "log.gz").read_bytes() == b"mine"
    assert shelf.ranges == []


def test_after_an_interruption_only_the_rest_is_asked_for(shelf: Shelf, tmp_path: Path) -> None:
    size = interrupted(shelf, tmp_path)
    assert 0 < size < len(CONTENT)
    found = download(shelf.file(), tmp_path)
    assert found.path.read_bytes() == CONTENT
    assert shelf.ranges == [None, f"bytes={size}-"]
    assert shelf.served[1] == len(CONTENT) - size
    assert names(tmp_path) == [RECORD, "log.gz"]


def test_a_part_that_is_whole_needs_no_request(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetch, "_checksum", lambda *_: interrupt_at(0)(0, None))
        download(shelf.file(), tmp_path)
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert len(shelf.ranges) == 1


def test_a_dropped_connection_is_taken_up_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.drops_after = [HALF, 50_000]
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert shelf.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 50_000}-"]
    assert sum(shelf.served) == len(CONTENT)


def test_connections_that_always_drop_end_in_one_line(shelf: Shelf, tmp_path: Path) -> None:
    shelf.drops_after = [1000, 1000, 1000]
    with pytest.raises(
        DataError, match=r"ended after 3,000 of 300,000 bytes, at the last of 3 attempts; .*resumes the download"
    ):
        download(shelf.file(), tmp_path)
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert shelf.served[-1] == len(CONTENT) - 3000


def test_a_length_that_is_a_lie_is_seen(shelf: Shelf, tmp_path: Path) -> None:
    shelf.says_more_bytes = 7
    with pytest.raises(DataError, match="at the last of 3 attempts"):
        download(shelf.file(), tmp_path)
    assert not (tmp_path / "log.gz").exists()


def test_another_length_than_published_is_seen_before_anything_is_read(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 300,000 bytes, expected 300,001"):
        download(shelf.file(checksum=md5(CONTENT), num_bytes=300_001), tmp_path)


def test_a_server_without_ranges_sends_all_again(shelf: Shelf, tmp_path: Path) -> None:
    interrupted(shelf, tmp_path)
    shelf.knows_ranges = False
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert shelf.served[1] == len(CONTENT)


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changed_meanwhile_starts_over(shelf: Shelf, tmp_path: Path, heeds: bool) -> None:
    interrupted(shelf, tmp_path)
    shelf.content, shelf.tag, shelf.heeds_if_range = CONTENT[::-1], '"v2"', heeds
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("left", [10, 0, -10])
def test_a_file_that_became_shorter_starts_over(shelf: Shelf, tmp_path: Path, left: int) -> None:
    size = interrupted(shelf, tmp_path)
    shelf.content, shelf.heeds_if_range = CONTENT[: size + left], False
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT[: size + left]


def test_another_range_than_asked_for_is_not_appended(shelf: Shelf, tmp_path: Path) -> None:
    interrupted(shelf, tmp_path)
    shelf.shifts_ranges = True
    assert download(shelf.file(checksum=md5(CONTENT)), tmp_path).path.read_bytes() == CONTENT


def test_the_date_serves_where_there_is_no_strong_tag(shelf: Shelf, tmp_path: Path) -> None:
    shelf.tag, shelf.date = 'W/"v1"', "Tue, 01 Jul 2025 10:00:00 GMT"
    size = interrupted(shelf, tmp_path)
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert shelf.ranges[1] == f"bytes={size}-"


@pytest.mark.parametrize("note", ["", "300000", '9 "v1"\n', None])
def test_a_part_of_unknown_origin_is_not_gone_on_with(shelf: Shelf, tmp_path: Path, note: str | None) -> None:
    interrupted(shelf, tmp_path)
    path = tmp_path / "log.gz.part.version"
    path.unlink() if note is None else path.write_text(note)
    assert download(shelf.file(), tmp_path).path.read_bytes() == CONTENT
    assert shelf.ranges == [None, None]


def test_a_busy_server_is_asked_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.busy_answers = 2
    assert download(shelf.file(), tmp_path).fetched
    shelf.busy_answers = 3
    with pytest.raises(DataError, match="the server answered 503 Service Unavailable, at the last of 3 attempts"):
        download(shelf.file("other.gz"), tmp_path)


def test_a_file_that_is_not_there_is_named(shelf: Shelf, tmp_path: Path) -> None:
    shelf.status = 404
    with pytest.raises(DataError, match=rf"{shelf.address}/log.gz: the server answered 404 Not Found"):
        download(shelf.file(), tmp_path)
    assert len(shelf.ranges) == 1
    assert names(tmp_path) == []


def test_no_server_is_one_line(shelf: Shelf, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/log.gz"
        with pytest.raises(DataError, match=r"log\.gz: no connection \(.*refused\), at the last of 3 attempts"):
            download(RemoteFile(address), tmp_path)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), r"cannot be reached \(.*Name or service not known\)"),
        (ssl.SSLCertVerificationError(1, "expired"), "certificate cannot be trusted"),
    ],
)
def test_no_network_and_no_trust_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: OSError, message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if isinstance(reason, ssl.SSLCertVerificationError):
            reason.verify_message = "certificate has expired"
        raise urllib.request.URLError(reason)

    monkeypatch.setattr(fetch, "urlopen", fail)
    with pytest.raises(DataError, match=message):
        download(RemoteFile("https://example.org/log.gz"), tmp_path)


def test_https_never_becomes_http(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = urllib.request.urlopen(f"{shelf.address}/log.gz")
    monkeypatch.setattr(fetch, "urlopen", lambda *_, **__: plain)
    with pytest.raises(DataError, match=r"leads to http:.*expected https"):
        download(RemoteFile("https://example.org/log.gz"), tmp_path)
    assert names(tmp_path) == []


def test_a_page_that_says_where_the_file_went_is_not_the_file(shelf: Shelf, tmp_path: Path) -> None:
    shelf.kind = "text/html; charset=utf-8"
    with pytest.raises(DataError, match=r"log\.gz: leads to a web page, http.*expected the file"):
        download(shelf.file(), tmp_path)
    assert names(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT_SECONDS", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DataError, match=r"no connection \(timed out\), at the last of 3 attempts"):
            download(RemoteFile(f"http://127.0.0.1:{silent.getsockname()[1]}/log.gz"), tmp_path)


def test_a_full_disk_is_one_line(shelf: Shelf, tmp_path: Path) -> None:
    def full(done: int, total: int | None) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be written or read \(No space left on device\); make room"):
        download(shelf.file(), tmp_path, full)


def test_an_output_that_is_a_file_is_named(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be written or read \(File exists\)"):
        download(shelf.file(), tmp_path / "file")


def test_a_damaged_record_is_named(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("[1")
    with pytest.raises(DataError, match=rf"{RECORD}: is not a table of checksums"):
        download(shelf.file(), tmp_path)


def test_the_catalogue_is_well_formed() -> None:
    assert len({dataset.name for dataset in DATASETS}) == len(DATASETS) == 14
    digits = {"md5": 32, "sha256": 64}
    for dataset in DATASETS:
        assert all((dataset.about, dataset.terms, dataset.citation))
        assert "https://" in dataset.terms
        assert len({file.name for file in dataset.files}) == len(dataset.files)
        for file in dataset.files:
            assert file.address.startswith("https://")
            assert "//" not in file.address.removeprefix("https://")
            if file.checksum:
                assert len(bytes.fromhex(file.checksum.digest)) * 2 == digits[file.checksum.algorithm]
                assert file.checksum.digest == file.checksum.digest.lower()


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_what_to_prepare_is_among_what_is_fetched(dataset: PublicDataset) -> None:
    fetched = {file.name for file in dataset.files}
    if not fetched >= {dataset.events, dataset.items}:
        folder = Path(next(iter(fetched))).stem
        assert Path(dataset.events).parent == Path(dataset.items).parent == Path(folder)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("movielens-1M", "did you mean movielens-1m"),
        ("amazon2018_music", "did you mean amazon2018-music"),
        ("netflix", "expected one of movielens-100k, .*amazon2023-sports"),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name: str, advice: str) -> None:
    with pytest.raises(DataError, match=f"data set '{name}' is unknown; {advice}"):
        find_dataset(name)


def use_only(monkeypatch: pytest.MonkeyPatch, dataset: PublicDataset) -> None:
    monkeypatch.setattr("slmrec.data.public.registry.DATASETS", (dataset,))


def test_the_command_shows_terms_first_and_what_comes_next(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mine/log.csv", "u,i,1")
    shelf.content = buffer.getvalue()
    file = shelf.file("mine.zip", checksum=md5(shelf.content))
    use_only(monkeypatch, PublicDataset("mine", "few", (file,), "mine/log.csv", "mine/items.csv", "be good", "us"))
    output = tmp_path / "two words"
    stage.fetch("mine", output)
    shown = capsys.readouterr().out
    assert shown.startswith("mine: few\nterms: be good\ncite: us\n")
    assert f"mine.zip: downloaded, {file.checksum}: matches the checksum of its publisher\n" in shown
    assert (
        f"slmrec prepare --input '{output}/mine/log.csv' --items '{output}/mine/items.csv' --output out/mine" in shown
    )
    assert (output / "mine" / "log.csv").read_text() == "u,i,1"
    stage.fetch("mine", output)
    assert "exists already" in capsys.readouterr().out
    assert len(shelf.ranges) == 1


def test_the_command_says_that_nothing_could_be_compared(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.content = gzip.compress(b"{}")
    use_only(monkeypatch, PublicDataset("mine", "few", (shelf.file(),), "log.gz", "log.gz", "be good", "us"))
    stage.fetch("mine", tmp_path)
    assert f"{sha256(shelf.content)}: no checksum is published to compare with" in capsys.readouterr().out
    stage.fetch("mine", tmp_path)
    assert f"exists already, {sha256(shelf.content)}: matches the checksum of {RECORD}" in capsys.readouterr().out


def test_terms_are_shown_even_if_nothing_can_be_fetched(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.status = 404
    use_only(monkeypatch, PublicDataset("mine", "few", (shelf.file(),), "log.gz", "log.gz", "be good", "us"))
    with pytest.raises(DataError, match="404"):
        stage.fetch("mine", tmp_path)
    assert "be good" in capsys.readouterr().out


def test_the_list_names_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    stage.list_datasets()
    shown = capsys.readouterr().out
    assert all(f"{dataset.name} " in shown for dataset in DATASETS)
    assert "(239 MB)" in shown
