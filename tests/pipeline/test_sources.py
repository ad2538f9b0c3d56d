"""A stage that is given another log than that of `prepare` stops; the same content may lie elsewhere."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import refused

from slmrec.commands.main import main
from slmrec.pipeline.table import PIPELINE

EVENTS = "".join(f"u{user},i{(user + step) % 7},{step}\n" for user in range(8) for step in range(5))
HEADER = "user_id,item_id,timestamp\n"
LATER = [stage.name for stage in PIPELINE if stage.name != "prepare"]


@pytest.fixture(scope="module")
def recipe(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that names no log."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["prepare"] = {}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, items, and a data set that was prepared from them."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "log.csv").write_text(HEADER + EVENTS, encoding="utf-8")
    titles = "".join(f"i{item},Thing {item}\n" for item in range(7))
    (folder / "items.csv").write_text("item_id,title\n" + titles, encoding="utf-8")
    files = ["--input", str(folder / "log.csv"), "--items", str(folder / "items.csv")]
    assert main(["prepare", "--config", str(recipe), "--output", str(folder / "out"), *files]) == 0
    return folder


@pytest.fixture
def log(prepared: Path) -> Path:
    return prepared / "log.csv"


@pytest.fixture
def items(prepared: Path) -> Path:
    return prepared / "items.csv"


@pytest.fixture
def common(recipe: Path, prepared: Path) -> list[str]:
    return ["--config", str(recipe), "--output", str(prepared / "out")]


@pytest.mark.parametrize("stage", LATER)
@pytest.mark.parametrize("option", ["--input", "--items"])
def test_another_file_is_refused(
    stage: str, option: str, common: list[str], log: Path, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = log if option == "--input" else items
    other = used.with_name("other.csv")
    other.write_text(used.read_text(encoding="utf-8").replace("i6", "i5"), encoding="utf-8")
    error = refused([stage, *common, option, str(other)], capsys)
    assert f"prepare.{option[2:]} is {other}, but {common[3]}/prepare was made from {used}, a file of" in error
    assert "run `slmrec prepare` with the same --config and --output first" in error
    assert not (Path(common[3]) / stage / "stage.json").exists()


def test_a_log_that_has_changed_is_another_one(
    common: list[str], log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = log.read_text(encoding="utf-8")
    try:
        log.write_text(f"{content}u9,i1,9\n", encoding="utf-8")
        assert "`slmrec prepare`" in refused(["pretrain", *common, "--input", str(log)], capsys)
        assert "`slmrec prepare`" in refused(["pretrain", *common, "--input", "elsewhere.csv"], capsys)
    finally:
        log.write_text(content, encoding="utf-8")


def test_the_same_content_may_lie_elsewhere_or_be_gone(
    common: list[str], log: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.move(log, tmp_path / "moved.csv"))
    try:
        for path in (moved, log):
            given = ["--input", str(path), "--items", str(items), "--model", "popularity"]
            assert main(["pretrain", *common, *given]) == 0
    finally:
        shutil.move(moved, log)
    assert "warning" not in capsys.readouterr().err


def test_items_of_a_log_without_items(
    tmp_path: Path, recipe: Path, log: Path, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(recipe), "--output", str(tmp_path / "out")]
    assert main(["prepare", *common, "--input", str(log)]) == 0
    assert "was made from a log without a table of items" in refused(
        ["pretrain", *common, "--items", str(items)], capsys
    )


def test_parts_are_compared_one_by_one(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("a", "b"):
        columns = {"user_id": [f"{name}{n // 4}" for n in range(20)], "item_id": [n % 6 for n in range(20)]}
        pq.write_table(pa.table(columns | {"timestamp": list(range(20))}), parts / f"{name}.parquet")
    common = ["--config", str(recipe), "--output", str(tmp_path / "out"), "--input", str(parts)]
    assert main(["prepare", *common]) == 0
    assert main(["pretrain", *common, "--model", "popularity"]) == 0
    shutil.copy(parts / "a.parquet", parts / "b.parquet")
    assert "`slmrec prepare`" in refused(["pretrain", *common, "--model", "popularity"], capsys)


def test_another_setting_of_prepare_is_said(common: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *common, "--model", "popularity", "prepare.min_user_events=4"]) == 0
    said = capsys.readouterr().err
    assert "prepare.min_user_events is 4, but" in said and "was made with 3, which is used" in said
    url = "postgres://ann:hidden@host/shop"
    assert main(["pretrain", *common, "--model", "popularity", f"prepare.engine={url}"]) == 0
    said = capsys.readouterr().err
    assert 'prepare.engine is "postgres://ann@host/shop", but' in said and 'made with "duckdb"' in said
