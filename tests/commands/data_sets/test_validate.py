"""What `slmrec data validate` prints and refuses."""

from pathlib import Path

import pytest

from slmrec.commands.data_sets.validate import validate
from slmrec.commands.main import main
from slmrec.errors import ConfigError, DataError

ROWS = "user_id,item_id,timestamp\n" + "".join(
    f"{user},{item},{time}\n"
    for user, item, time in (("u", "a", 5), ("u", "b", 7), ("u", "a", 5), ("v", "a", 9), ("u", "c", 6))
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(ROWS, encoding="utf-8")
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Two columns of a table."""
    rows = [line.strip(" │┃|").split("│") for line in capsys.readouterr().out.splitlines() if "│" in line[1:-1]]
    return {" ".join(row[0].split()): row[1].strip() for row in rows}


def test_it_prints_what_was_found_and_writes_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(log.parent)
    monkeypatch.setenv("COLUMNS", "200")
    validate(str(log), [])
    assert list(log.parent.iterdir()) == [log]
    assert log.read_text(encoding="utf-8") == ROWS
    assert printed(capsys) == {
        "format": "csv",
        "user_col": "user_id",
        "item_col": "item_id",
        "time_col": "timestamp",
        "events": "5",
        "users": "2",
        "users of fewer than 3 events": "1",
        "items": "3",
        "duplicates (same user, item and time)": "1",
        "first time (UTC)": "1970-01-01 00:00:05",
        "last time (UTC)": "1970-01-01 00:00:09",
        "unit of the times": "seconds",
    }


def test_mixed_units_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,1700000000\nu,b,1700000001000\n", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(DataError, match="1 rows are not events"):
        validate(str(path), [])
    assert "3     timestamp  '1700000001000'  looks like milliseconds, but" in capsys.readouterr().out.replace(
        " │ ", "  "
    )


def test_good_logs_are_said_to_be_so(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "validate", str(log)]) == 0
    assert capsys.readouterr().out.endswith(f"{log}: all rows are events\n")


def test_logs_without_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "log.txt"
    path.write_text("u a b c\nv a\n", encoding="utf-8")
    validate(str(path), ["prepare.min_user_events=4"])
    found = printed(capsys)
    assert (found["format"], found["events"], found["times"]) == ("sequences", "4", "none")
    assert found["users of fewer than 4 events"] == "2"


def test_bad_rows_are_shown_and_counted(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    bad = ["u,a,soon", "1,2", 'w,"[/bold] :smile: [red]', *(f",a,{number}" for number in range(9))]
    log.write_text(ROWS + "\n".join(bad) + "\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"log\.csv: 12 rows are not events; correct them, or prepare with --on-bad-row"
    ):
        validate(str(log), [])
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line[:1] == ["log.csv"]]
    reason = "expected a number or a date such as 2014-07-23T10:00:00Z"
    assert len(shown) == 10
    assert shown[:2] == [
        ["log.csv", "7", "timestamp", "'soon'", reason],
        ["log.csv", "8", "", "'1,2'", "2 columns, expected 3"],
    ]
    assert shown[2][3] == "'w,\"[/bold] :smile: [red]'", "no markup"
    counted = {line[4]: line[1] for line in lines if line[:1] == ["in all"]}
    assert counted["user_id: expected an id"] == "9"
    assert counted[f"timestamp: {reason}"] == counted["2 columns, expected 3"] == "1"
    assert list(log.parent.iterdir()) == [log]


def test_names_of_files_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "[bold]log[1] :smile:.csv"
    path.write_text(ROWS, encoding="utf-8")
    validate(str(path), [])
    assert path.name in capsys.readouterr().out


def test_the_command_tells_faults_in_one_line(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(f"{ROWS}1,2\n", encoding="utf-8")
    assert main(["data", "validate", str(log)]) == 2
    faults = [line for line in capsys.readouterr().err.splitlines(keepends=True) if "slmrec: warning: " not in line]
    assert "".join(faults) == (
        f"slmrec: {log}: 1 rows are not events; correct them, or prepare with --on-bad-row skip, which leaves them "
        "out\n"
    )


def test_settings_say_how_a_log_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text("u,a\nu,b\n", encoding="utf-8")
    settings = ["prepare.columns=[who,what]", "prepare.user_col=who", "prepare.item_col=what", "prepare.order=file"]
    validate(str(path), settings)
    assert "who" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"log\.csv: no column 'user_id'"):
        validate(str(path), [])
    with pytest.raises(ConfigError, match="nothing_like_this"):
        validate(str(path), ["prepare.nothing_like_this=1"])


def test_logs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        validate(str(tmp_path / "none.csv"), [])
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.csv: none of its 1 rows is an event; .*line 2: '1,2': 2 columns"):
        validate(str(path), [])


def test_control_characters_of_a_log_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "log\x1b[2J.csv"
    path.write_text("user_id,item\x1b[31m,timestamp\nu,\x1b]0;title\x07,1\nv,a,\x1b[2J\u202e\n", encoding="utf-8")
    assert main(["data", "validate", str(path), 'prepare.item_col="item\\x1b[31m"']) == 2
    output = capsys.readouterr()
    assert "\\x1b[2J\\u202e" in output.out
    assert not {"\x1b", "\x07", "\u202e"} & set(output.out)


@pytest.mark.parametrize(
    ("users", "items", "warning"),
    [
        ("uu", "ab", "there is 1 user"),
        ("uv", "aa", "there is 1 item, so every model recommends it and every metric is 1"),
        ("uv", "ab", "there are 2 items, so hit@k is 1 for every model from k = 2"),
    ],
)
def test_logs_of_one_user_or_few_items(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, users: str, items: str, warning: str
) -> None:
    path = tmp_path / "log.csv"
    rows = [f"{user},{item},{time}\n" for time, item in enumerate(items * 2) for user in users]
    path.write_text("user_id,item_id,timestamp\n" + "".join(rows), encoding="utf-8")
    assert main(["data", "validate", str(path)]) == 0
    assert main(["prepare", "--input", str(path), "--output", str(tmp_path / "data")]) == 0
    assert f"{path}: {warning}" in caplog.text and f"prepare: {warning}" in caplog.text
