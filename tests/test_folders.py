"""Full disks: one line, whichever library wrote, and the old result stays."""

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slmrec.errors import CheckpointError
from slmrec.folders import disk_errors_reported, folder_in_place, link_in_place


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """No file can grow beyond 4 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path, _full_disk: None) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("kept", encoding="utf-8")
    weights = {"a": torch.zeros(10_000)}
    for write in (
        lambda folder: save_file(weights, folder / "weights"),
        lambda folder: (folder / "text").write_text("x" * 10_000, encoding="utf-8"),
    ):
        with (
            pytest.raises(CheckpointError, match=r"File too large; free space .*existing results are unchanged"),
            folder_in_place(target, replaced=True) as folder,
        ):
            write(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert (target / "old").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(
    ("number", "place", "message"),
    [
        (errno.EACCES, "log.csv", "log.csv: cannot be read (Permission denied); grant permission, or name another"),
        (errno.EACCES, "out/run/a/b", "out/run/a/b: Permission denied; free space or grant permission, or choose"),
        (errno.EACCES, "out", "out: Permission denied; free space or grant permission, or choose"),
        (errno.EACCES, "out/.lock", "out/.lock: Permission denied; free space or grant permission, or choose"),
        (errno.ENOSPC, "/tmp/spill", "/tmp/spill: No space left on device; free space"),
        (errno.EIO, None, "out/run: Input/output error while reading or writing; check the disk"),
    ],
)
def test_errors_of_reading_and_of_writing_are_told_apart(number: int, place: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"), disk_errors_reported(Path("out/run")):
        raise OSError(number, os.strerror(number), place)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match=r"os error 2"), disk_errors_reported(Path("out")):
        raise ValueError("missing (os error 2)")


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    for name in ("old", "new", "apart/new"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name, encoding="utf-8")
    link = tmp_path / "best"
    for name in ("old", "new"):
        link_in_place(link, tmp_path / name)
        assert link.readlink() == Path(name)
    (tmp_path / "new").rename(tmp_path / "gone")  # now it leads nowhere
    link_in_place(link, tmp_path / "old")
    assert (link / "weights").read_text(encoding="utf-8") == "old"
    link_in_place(tmp_path / "apart" / "best", tmp_path / "old")
    assert (tmp_path / "apart" / "best").readlink() == tmp_path / "old"
    with folder_in_place(link, replaced=True) as folder:  # a folder in the place of the link
        (folder / "weights").write_text("own", encoding="utf-8")
    assert not link.is_symlink() and (link / "weights").read_text(encoding="utf-8") == "own"
    link_in_place(link, tmp_path / "gone")  # and a link in the place of the folder
    assert link.readlink() == Path("gone")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "gone", "apart", "best"}
    assert (tmp_path / "old" / "weights").exists()
