import zipfile
from pathlib import Path

import pytest

from slmrec.data.public.archive import unpack
from slmrec.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def test_an_archive_is_unpacked_beside_itself(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"a/": b"", "a/b.csv": b"1,2", "a/c/d.csv": b"3"})
    unpack(archive)
    assert (tmp_path / "a" / "b.csv").read_bytes() == b"1,2"
    assert (tmp_path / "a" / "c" / "d.csv").read_bytes() == b"3"
    assert names(tmp_path) == ["a", "a.zip"]


def test_unpacking_changes_nothing_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"mine")
    unpack(zipped(tmp_path / "a.zip", {"b.csv": b"theirs", "a.zip": b"", "c.csv": b"new"}))
    assert (tmp_path / "b.csv").read_bytes() == b"mine"
    assert (tmp_path / "c.csv").read_bytes() == b"new"


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\share\\evil"]
)
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    archive = zipped(tmp_path / "in" / "a.zip", {"good.csv": b"1", name: b"evil"})
    with pytest.raises(DataError, match=r"a\.zip: contains '.*evil', a path outside its folder"):
        unpack(archive)
    assert names(tmp_path) == ["in"]
    assert names(tmp_path / "in") == ["a.zip"]


def test_an_archive_cannot_fill_the_disk(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(10**7)})
    with pytest.raises(DataError, match=r"would unpack to 10,000,000 bytes, expected at most"):
        unpack(archive)
    assert names(tmp_path) == ["a.zip"]


def test_a_member_larger_than_declared_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(10**6)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"cannot be unpacked \(Bad CRC-32"):
        unpack(archive)
    assert names(tmp_path) == ["a.zip"]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK and so on")
    with pytest.raises(DataError, match=r"a\.zip: cannot be unpacked \(File is not a zip file\)"):
        unpack(archive)
