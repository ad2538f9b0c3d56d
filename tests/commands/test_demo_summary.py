"""The closing tables of the demo, with figures worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec.commands.demo_summary import rare_targets, read_standings, show_summary
from slmrec.version import __version__

NUM_USERS = 400
PROTOCOL = "full_history_excluded"
SPEEDS = {"popularity": 9000.0, "sasrec": 1000.0, "text": 400.0, "teacher": 300.0, "student": 800.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluated run: SASRec finds the item of every second user, the student that of three in four."""
    folder = tmp_path / "evaluate"
    folder.mkdir()
    (folder / "stage.json").write_text(json.dumps({"done": True, "version": __version__}))
    users = np.arange(NUM_USERS)
    ranks = {name: np.full(NUM_USERS, 50) for name in SPEEDS}
    ranks["sasrec"][users % 2 == 0] = 0
    ranks["student"][users % 4 > 0] = 0
    ranks["teacher"][:] = 0
    counts = np.array([0, 3, 10, 50])[users // 100]
    values = {name: {"users_per_second": speed, "num_parameters": 7} for name, speed in SPEEDS.items()}
    content = {"primary": PROTOCOL, "protocols": {PROTOCOL: {"settings": {}, "models": values}}}
    ids = pa.array([f"u{user}" for user in users])
    (folder / "metrics.json").write_text(json.dumps(content))
    users_table = {"user_id": ids, "history_length": np.full(NUM_USERS, 5), "target_count": counts}
    pq.write_table(pa.table(users_table), folder / "users.parquet")
    tables = [
        pa.table({"user_id": ids, "model": [name] * NUM_USERS, "protocol": [PROTOCOL] * NUM_USERS, "rank": own})
        for name, own in ranks.items()
    ]
    pq.write_table(pa.concat_tables(tables), folder / "per_user.parquet")
    return tmp_path


def test_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(run, "student", np.array([0, 2]))
    shown = capsys.readouterr().out
    models, slices = (part.splitlines() for part in shown.split("NDCG@10 by training events"))
    lines = {line.split()[1]: line for line in models if line.startswith("│")}
    assert "0.7500" in lines["student"] and "+0.2500" in lines["student"] and "+50.0%" in lines["student"]
    assert "800" in lines["student"] and "ship this" in lines["student"] and "ship this" not in lines["teacher"]
    assert "0.5000" in lines["sasrec"] and "+" not in lines["sasrec"]
    cells = [[cell.strip() for cell in line.split("│")[1:5]] for line in slices if line.startswith("│")]
    for start, name in enumerate(("0 (never trained on)", "1-4 (rare)", "5-20", "more than 20")):
        assert cells[4 * start] == [name, "100", "sasrec", "0.5000"]
        assert [row[2:] for row in cells[4 * start + 1 : 4 * start + 4]] == [
            ["text", "0.0000"],
            ["teacher", "1.0000"],
            ["student", "0.7500"],
        ]
    assert "has an NDCG@10 of 0.7500" in shown


def test_differences_are_to_sasrec_over_the_same_users(run: Path) -> None:
    by_model = {one.model: one.comparison for one in read_standings(run)}
    assert by_model["popularity"].difference == -0.5 and by_model["sasrec"].low == by_model["sasrec"].high == 0
    student = by_model["student"]
    assert student.low < student.difference == 0.25 < student.high


def test_users_who_bought_a_new_or_rare_item_next(run: Path) -> None:
    rare, found = rare_targets(run, ["sasrec", "student"])
    assert rare.tolist() == list(range(200))
    assert found["sasrec"].tolist() == list(range(0, 200, 2))
    assert found["student"].tolist() == [user for user in range(200) if user % 4]
