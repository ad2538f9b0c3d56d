"""A/B tests: which model answers a user, and the log of the answers."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import serving, write_model

from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError
from slmrec.serving.experiment import ExposureLog, Split

SPLIT = Split(("student", "teacher"), 0.5)
USERS: list[Any] = [*range(20), *(f"u{number}" for number in range(20))]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_users_are_divided_alike_in_every_process() -> None:
    users = [f"user {number}" for number in range(4000)]
    seconds = [Split(("A", "B"), share).model_of(user) == "B" for share in (0.2, 0.6) for user in users]
    assert abs(sum(seconds[:4000]) / 4000 - 0.2) < 0.03 and abs(sum(seconds[4000:]) / 4000 - 0.6) < 0.03
    assert all(late for early, late in zip(seconds[:4000], seconds[4000:], strict=True) if early)  # nobody moves back
    other = [Split(("A", "B"), 0.6, "new salt").model_of(user) == "B" for user in users]
    assert 0.3 < sum(a != b for a, b in zip(other, seconds[4000:], strict=True)) / 4000 < 0.7
    assert len({SPLIT.model_of(user) for user in (7, 7.0, "7")}) == 1
    # The same in every process and after every restart: these values are written down, not computed.
    assert "".join(Split(("A", "B"), 0.5).model_of(user) for user in ("u1", "u2", "u3", *range(8))) == "AABABBBABBB"


def test_each_user_is_answered_by_one_model_and_logged(student: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", tiny_dataset, seed=1)
    with serving(student, teacher=teacher) as plain:
        single = {name: plain.ask(f"/recommend?model={name}", {"history": ["i01"]})[2] for name in SPLIT.models}
    logged: list[tuple[str, dict[str, Any]]] = []
    with serving(student, teacher=teacher, split=SPLIT, exposures=ExposureLog(tmp_path / "log")) as client:
        for user in USERS[::5]:
            answer = client.recommend(user_id=user, history=["i01"])
            assert answer["model"] == SPLIT.model_of(user)
            assert ids(answer) == ids(single[answer["model"]])
            logged.append((str(user), answer))
        several = client.recommend(requests=[{"user_id": user, "history": ["i01"], "k": 3} for user in USERS[:8]])
        assert {answer["model"] for answer in several["answers"]} == {"student", "teacher"}
        for user, answer in zip(USERS, several["answers"], strict=False):
            assert answer["model"] == SPLIT.model_of(user) and ids(answer) == ids(single[answer["model"]])[:3]
            logged.append((str(user), answer))
        assert client.ask("/recommend?model=teacher", {"history": ["i01"]})[0] == 200  # named: neither split nor logged
        for body, message in (
            ({"history": ["i01"]}, "user_id: required, since it decides between student and teacher"),
            ({"requests": [{"user_id": 1, "history": []}, {"history": []}]}, "requests[1].user_id: required"),
            ({"user_id": None, "history": []}, "user_id: required"),
            ({"user_id": "", "history": []}, "user_id: expected an item id"),
        ):
            status, _, content = client.ask("/recommend", body)
            assert status == 422 and message in content["error"]
        bad = [
            {"user_id": user, "history": ["i01"], "candidates": ["nope"] if user == USERS[7] else None}
            for user in USERS[:8]
        ]
        assert client.ask("/recommend", {"requests": bad})[2]["error"].startswith("requests[7].candidates: 'nope'")
    (file,) = (tmp_path / "log").iterdir()  # written when the server stops
    found = pq.read_table(file)
    assert found.schema.field("time").type == pa.timestamp("us", "UTC")
    for row, (user, answer) in zip(found.to_pylist(), logged, strict=True):
        assert (row["user_id"], row["variant"]) == (user, answer["model"])
        assert row["model_version"] == answer["model_version"]
        assert row["items"] == [item["item_id"] for item in answer["items"]]
        assert row["scores"] == pytest.approx([item["score"] for item in answer["items"]])


def test_a_log_begins_a_new_file_and_survives_a_full_disk(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("slmrec.serving.experiment._MAX_ROWS", 2)
    monkeypatch.setattr("slmrec.serving.experiment._MAX_SECONDS", 0.05)
    log, write = ExposureLog(tmp_path), ExposureLog._write

    def full(*_: Any) -> None:
        monkeypatch.setattr(ExposureLog, "_write", write)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ExposureLog, "_write", full)
    with serving(student, exposures=log) as client:
        client.recommend(requests=[{"history": ["i01"]}] * 3)
        while not list(tmp_path.glob("*.parquet")):
            client.recommend(history=["i02"], user_id=5)
    assert "cannot be written" in caplog.text and "No space left on device" in caplog.text
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(tmp_path.glob("*.parquet"))])
    assert (
        len(rows) >= 4
        and rows["user_id"].to_pylist()[:3] == [None] * 3
        and set(rows["variant"].to_pylist()) == {"student"}
    )
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model", "A=m", "--split", "0.5"],
            "--split divides the users between two models, got A; give --model A=DIR",
        ),
        (["--model", "A=m", "--model", "B=m", "--split", "1.5"], "--split is 1.5, expected the share"),
        (["--model", "A=m", "--exposures", "/proc/none"], "--exposures /proc/none: cannot be written"),
    ],
)
def test_bad_options_are_refused_before_models_are_loaded(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--exposures .* cannot be written"):
        ExposureLog(tmp_path / "file")
