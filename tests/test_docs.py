"""Commands and files that the documents name exist, and the example runs."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec import Recommender
from slmrec.commands.main import command_parser
from slmrec.data.dataset import Dataset
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline.table import PIPELINE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^ +|`)make ([a-z]+(?:-[a-z]+)?)\b", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_commands_of_the_readme_parse() -> None:
    text = re.sub(r"\\\n\s*", " ", README)
    commands = [line.strip().split("#")[0] for line in text.splitlines() if re.match(r"\s*slmrec [a-z]+ -", line)]
    assert {command.split()[1] for command in commands} >= {stage.name for stage in PIPELINE} | {"recommend"}
    for command in commands:
        command_parser().parse_args(command.split()[1:])


def test_files_named_in_the_documents_exist() -> None:
    for document in (README, (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")):
        for name in set(re.findall(r"`((?:src|configs|docs|tests|examples|benchmarks)/[\w./-]+)`", document)):
            assert (ROOT / name).exists(), name


def test_the_file_tree_of_contributing_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("```")[1]
    files = {path.name for path in (ROOT / "src" / "slmrec").rglob("*.py")}
    names = {name for line in tree.splitlines() for name in re.findall(r"[\w]+\.py\b", line.split("  ", 1)[-1])}
    assert names - files == set()
    folders = re.findall(r"^ *(\w+)/ ", tree, re.MULTILINE)
    assert len(folders) > 15
    present = {path.name for path in (*ROOT.iterdir(), *(ROOT / "src" / "slmrec").rglob("*")) if path.is_dir()}
    assert set(folders) - present == set()


def test_the_example_runs(tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slmrec.models.folder import save_recommender

    save_recommender(
        SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=50)), tiny_dataset, tmp_path, "tiny", {}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quickstart.py", str(tmp_path), "i01,i02"])
        runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    assert re.search(r"i\d\d", capsys.readouterr().out)


@pytest.mark.heavy
def test_ray_data_answers_as_one_process(tiny_dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'slmrec[ray]'")
    from slmrec.models.folder import save_recommender

    model = SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=50))
    save_recommender(model, tiny_dataset, tmp_path / "model", "tiny", {})
    (tmp_path / "users").mkdir()
    histories = [[f"i{1 + (user + item) % 40:02d}" for item in range(1 + user % 6)] for user in range(23)]
    for part in range(3):
        table = pa.table({"user_id": range(part, 23, 3), "history": histories[part::3], "other": histories[part::3]})
        pq.write_table(table, tmp_path / "users" / f"{part}.parquet")
    command = [sys.executable, str(ROOT / "examples" / "ray_batch.py"), "model", "users", "lists"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = Recommender.from_pretrained(tmp_path / "model").recommend(histories).table
    order = [("user_id", "ascending"), ("rank", "ascending")]
    found = pq.read_table(tmp_path / "lists").sort_by(order)
    assert found.drop_columns("score").equals(expected.drop_columns("score"))
    assert found["score"].to_pylist() == pytest.approx(expected["score"].to_pylist(), abs=1e-5)
