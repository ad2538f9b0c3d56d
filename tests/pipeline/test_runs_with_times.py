"""Models that read times through the whole pipeline, and logs without times."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import read_json, refused

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.errors import ConfigError

TRAIN = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.01}
SASREC = {"hidden_size": 8, "num_hidden_layers": 1, "positions": "from_oldest"}
BASE = {**SASREC, "kind": "sasrec", "max_history_items": 5, "supervision": "every_position", "train": TRAIN}
RECIPE = {
    "pretrain": {"plain": BASE, "timed": {**BASE, "time_gaps": {}, "seed": 1}},
    "finetune": {"backbone": None, "item_vectors": None, "ensemble": ["plain", "timed"], "max_history_items": 5},
    "distill": {
        "student": {"kind": "sasrec", **SASREC, "init": "projected", "time_gaps": {"num_buckets": 20}},
        "weights": {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1},
        "train": TRAIN,
    },
    "evaluate": {"protocols": ["full_history_excluded"], "splits": ["test", "valid"], "timing_users": 10},
}


def write_log(path: Path) -> list[dict[str, object]]:
    """Write events of 20 users; after a long pause, a user goes on elsewhere."""
    rows: list[dict[str, object]] = []
    for user in range(20):
        time, item = 1_600_000_000_000 + user, user
        for step in range(5 + user % 3):
            pause = 500 if (user + step) % 2 else 90_000_000
            time, item = time + pause, (item + (1 if pause == 500 else 7)) % 25
            rows.append({"user_id": f"u{user}", "item_id": f"i{item:02d}", "timestamp": time})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return rows


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "config.yaml"


def test_a_run_of_models_with_and_without_times(config: Path, tmp_path: Path) -> None:
    rows, output = write_log(tmp_path / "log.parquet"), tmp_path / "run"
    assert (
        main(["run", "--config", str(config), "--input", str(tmp_path / "log.parquet"), "--output", str(output)]) == 0
    )
    stages = {"pretrain/plain": False, "pretrain/timed": True, "distill": True}
    for folder, reads in stages.items():
        recommender = Recommender.from_pretrained(output / folder)
        assert recommender.model.timestamp_unit == ("ms" if reads else None)
        assert f"`timestamps`, in {recommender.model.timestamp_unit}" in recommender_card(output / folder) or not reads
    times = [row["timestamp"] for row in rows if row["user_id"] == "u0"]
    items = [row["item_id"] for row in rows if row["user_id"] == "u0"]
    student = Recommender.from_pretrained(output / "distill")
    lists = student.recommend([items[:-1]], 25, timestamps=[times[:-1]]).to_lists()[0]
    ranks = pq.read_table(output / "evaluate" / "per_user.parquet").to_pylist()
    (rank,) = (row["rank"] for row in ranks if (row["user_id"], row["model"]) == ("u0", "student"))
    target = items[-1]
    assert target in items[:-1] or [item for item, _ in lists][rank] == target
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full_history_excluded"]["models"]
    assert {"plain", "timed", "teacher", "student"} <= models.keys()


def recommender_card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_log_without_times_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shop_file: Path
) -> None:
    common = ["--config", str(config), "--output", str(tmp_path / "run")]
    assert main(["prepare", *common, "--input", str(shop_file)]) == 0
    error = refused(["pretrain", *common, "--model", "timed"], capsys)
    assert "pretrain.timed.time_gaps reads the times of events, but the log has no column of times" in error
    assert main(["run", *common, "--input", str(shop_file), "--dry-run"]) == 0
    assert "pretrain/timed: time_gaps reads times, which the data lack" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.order=file", "pretrain.timed.time_gaps is .* it needs times: prepare.order: time"),
        ("prepare.format=sequences", "pretrain.timed.time_gaps is .* it needs times: .* and no format: sequences"),
        ("pretrain.timed.time_gaps={num_buckets: 1}", "num_buckets is 1: Input should be greater than or equal to 2"),
        ("pretrain.plain={kind: decoder, backbone: random, time_gaps: {}}", "time_gaps"),
        ("finetune.time_gaps={}", "time_gaps"),
    ],
)
def test_settings_that_cannot_be(config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config, [override])
