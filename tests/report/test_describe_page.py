"""What `slmrec data describe` prints and draws."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec import prepare
from slmrec.commands.data_sets.describe import describe
from slmrec.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
WIDTH = 80


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 1,200 events, one an hour: 40 users take turns; item 1 is new to the last of them."""
    rows = range(1_200)
    columns = {
        "user_id": [row % 40 for row in rows],
        "item_id": [1 if row == 1_199 else 2 + row * row % 17 for row in rows],
        "timestamp": [(1_700_000_000 + 3600 * row) * 1000 for row in rows],
    }
    folder = tmp_path_factory.mktemp("timed")
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return prepare(folder / "log.parquet", folder / "data")


@pytest.fixture
def timed(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The rows of the printed table: value by name."""
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if not line.startswith(("picture: ", "prepare: "))) <= WIDTH
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in rows} | {"text": text}


def test_the_text_has_the_figures(timed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(timed)
    found = lines(capsys)
    expected = {
        "users": "40",
        "events": "1,200",
        "titled items": "no titles",
        "mean events of a user": "30.00",
        "median": "30",
        "longest history": "30",
        "duplicates (same user, item and time)": "0",
        "first event (UTC)": "2023-11-14",
        "last event (UTC)": "2024-01-03",
        "unit of the times": "seconds",
        "events at the time of the one before or after": "0 %",
        "split": "leave_one_out",
        "train events": "1,120",
        "test targets": "40",
        "of an item without a train event": "1 (2.5 %)",  # the test target's row comes last
        "items without a train event": "1 (10 %)",
        "users without a training sample": "0 (0 %)",
    }
    assert {name: found[name] for name in expected} == expected
    assert " 16-31  ████████████████████████████████████████     40 " in found["text"]


def test_the_leak_of_leave_one_out_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    early, late = ([f"{user},{item},{start + item}" for item in range(4)] for user, start in (("a", 0), ("b", 99)))
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *early, *late]), encoding="utf-8")
    describe(prepare(tmp_path / "log.csv", tmp_path / "data"))
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "leave-one-out looks into the future: 1 of 2 test events (50 %) are older than the newest train event" in text
    )


def test_no_leak_is_told(timed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(timed)
    text = " ".join(capsys.readouterr().out.split())
    assert "leave-one-out does not look into the future: 0 of 40 test events (0 %)" in text


@pytest.mark.parametrize("wanted", [None, "pictures/data.png"])
def test_the_picture_is_a_png(
    timed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str | None
) -> None:
    path = tmp_path / wanted if wanted else timed / "describe.png"
    describe(timed, tmp_path / wanted if wanted else None)
    assert path.read_bytes().startswith(PNG)
    assert len(path.read_bytes()) > 10_000
    assert f"picture: {path}" in capsys.readouterr().out


def test_no_times(shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(prepare(shop_file, tmp_path / "data"))
    found = lines(capsys)
    assert (found["users"], found["items"], found["times"]) == ("80", "40", "no times")
    assert "duplicates (same user, item and time)" not in found
    assert "Without times, it is unknown whether training looks into the future." in found["text"]
    assert (tmp_path / "data" / "describe.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_text_is_all(
    timed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    describe(timed)
    text = capsys.readouterr().out
    assert "1,200" in text
    assert text.splitlines()[-1] == "no picture: it needs matplotlib; pip install 'slmrec[plots]'"
    assert not (timed / "describe.png").exists()


def test_nothing_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, slmrec.commands.data_sets.describe; sys.exit(' '.join({'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_a_folder_that_is_no_data_set_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a prepared data set"):
        describe(tmp_path)
    assert not list(tmp_path.iterdir())


def test_seconds_are_shown_of_short_spans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"u,{item},{1_700_000_000 + item}" for item in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    describe(prepare(tmp_path / "log.csv", tmp_path / "data"))
    assert lines(capsys)["last event (UTC)"] == "2023-11-14 22:13:24"
