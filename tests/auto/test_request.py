"""`slmrec run` without a YAML: chosen settings are written, reproduce the run, and are kept until something changes."""

from pathlib import Path

import pytest
from runs import read_json, refused

from slmrec.auto.request import Request
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log that is too small to train on."""
    rows = [f"u{user},i{(user * 7 + place * place) % 12},{place}" for user in range(20) for place in range(4)]
    path = tmp_path_factory.mktemp("few") / "log.csv"
    path.write_text("\n".join(["customer,item_id,timestamp", *rows]), encoding="utf-8")
    return path


def test_one_command(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, again = tmp_path / "run", tmp_path / "again"
    arguments = ["--input", str(log), "--output", str(output), "prepare.user_col=customer", "--memory", "4g"]
    assert refused(["run", "--dry-run", *arguments], capsys).startswith("slmrec: settings are chosen from the data")
    assert main(["run", *arguments]) == 0
    shown = "".join(capsys.readouterr())
    assert "settings: models: popularity, cooccurrence (20 training samples" in shown
    verdict = read_json(output / "verdict.json")
    assert {verdict["ship"], verdict["against"]} == {"popularity", "cooccurrence"}
    assert f"Ship {verdict['ship']}, in {output / 'best'}:" in shown and (output / "best" / "config.json").is_file()
    assert verdict["reasons"][-1].startswith("More events could make it better")
    assert read_json(output / "choice.json")["is_cut"] is False
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert list(models) == ["popularity", "cooccurrence"] and not (output / "distill").exists()
    assert (output / "report.html").is_file()
    assert main(["run", "--config", str(output / "config.yaml"), "--output", str(again)]) == 0
    for name in ("prepare", "pretrain/cooccurrence", "evaluate"):
        assert (
            read_json(output / name / "stage.json")["fingerprint"]
            == read_json(again / name / "stage.json")["fingerprint"]
        )
    capsys.readouterr()
    assert main(["run", *arguments]) == 0
    shown = "".join(capsys.readouterr())
    assert "settings: as chosen before" in shown and "evaluate: unchanged" in shown
    assert main(["run", *arguments, "seed=7"]) == 0
    assert "settings: models:" in "".join(capsys.readouterr())
    assert main(["run", "--dry-run", *arguments, "seed=7"]) == 0
    (output / "choice.json").unlink()
    assert "is not a file of chosen settings" in refused(["run", *arguments], capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--time-budget", "3x"], "--time-budget is '3x'; expected a duration such as 90s, 20m, 2h or 1h30m"),
        (["--memory", "8 bytes"], "--memory is '8 bytes'; expected a size such as 8g or 800m"),
        (["--config", "tiny", "--memory", "8g"], "--config gives them; leave one of the two out"),
        (["distill.train.learning_rate=1"], "without --config this setting is chosen"),
    ],
)
def test_refusals(
    options: list[str], expected: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["run", "--input", str(log), "--output", str(tmp_path / "run"), *options], capsys)
    assert expected in error and not (tmp_path / "run" / "prepare").exists()


def test_passwords_are_not_kept(tiny_dataset: Dataset, tmp_path: Path) -> None:
    assert isinstance(tiny_dataset.items, Path)
    (tmp_path / "prepare").symlink_to(tiny_dataset.items.parent)
    request = Request(("prepare.engine=postgres://ann:s3cret@host/shop", "prepare.input='s3://key:s3cret@shop/log'"))
    kept = str(request.of(tmp_path))
    assert "ann:***@host/shop" in kept and "s3cret" not in kept
