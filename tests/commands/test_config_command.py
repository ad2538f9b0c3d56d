"""`slmrec config`: recipes, settings as YAML, and their JSON Schema."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmrec.commands.main import main
from slmrec.config.kinds import KINDS
from slmrec.config.load import load_config
from slmrec.recipes import FOLDER, recipe_names


def test_the_list_has_a_line_for_each_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list"]) == 0
    *lines, hint = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names() and "config show NAME" in hint
    about = {line.split()[0]: line[13:] for line in lines}
    assert about["words"].startswith("needs titles     A teacher that reads the words of item titles")
    assert about["sequences"].startswith("without titles   For logs without titles")
    assert about["smollm2"].startswith("titles optional  ")
    assert all(text.endswith(".") for text in about.values())


@pytest.mark.parametrize("name", recipe_names())
def test_shown_settings_are_those_of_the_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["seed=7", "prepare.memory_limit=1GB"]
    assert main(["config", "show", name, *changes]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(shown, encoding="utf-8")
    assert load_config(tmp_path / "mine.yaml", []) == load_config(name, changes)
    assert "on_bad_row: error" in shown  # a default
    assert main(["config", "show", str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrods"], f"wrods: no such file or recipe; recipes: {', '.join(recipe_names())}"),
        (["words", "sed=7"], "override 'sed=7': unknown key 'sed' (did you mean 'seed'?)"),
        (["words", "seed=x"], "override 'seed=x': seed is 'x': Input should be a valid integer"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


def test_passwords_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "words", "prepare.engine=postgres://ann:s3cr3t@host/shop"]) == 0
    shown = capsys.readouterr().out
    assert "postgres://ann@host/shop" in shown and "s3cr3t" not in shown


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["config", "schema"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_the_schema_has_the_settings_of_every_kind(schema: dict[str, Any]) -> None:
    base_models = schema["properties"]["pretrain"]["additionalProperties"]["anyOf"]
    assert [model["properties"]["kind"]["const"] for model in base_models] == list(KINDS)
    assert base_models[0]["properties"]["hidden_size"]["default"] == 64
    assert "width of hidden states" in base_models[0]["properties"]["hidden_size"]["description"]


def test_the_schema_accepts_recipes_and_refuses_mistakes(
    schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    validator = pytest.importorskip("jsonschema_rs").Draft202012Validator(schema)
    for name in recipe_names():
        assert main(["config", "show", name]) == 0
        for text in ((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), capsys.readouterr().out):
            assert [str(error) for error in validator.iter_errors(yaml.safe_load(text))] == []
    for model, valid in (
        ({"hidden_size": 8}, True),
        ({"kind": "text", "hidden_size": 8}, True),
        ({"kind": "text", "hiden_size": 8}, False),
        ({"kind": "sasrec", "lora": None}, False),
        ({"kind": "gru"}, False),
    ):
        assert validator.is_valid({"pretrain": {"mine": model}}) == valid, model
    assert validator.is_valid({"distill": {"student": {"kind": "sasrec", "hidden_size": 8}}})
    assert not validator.is_valid({"distill": {"student": {"hidden_size": 8}}})  # the default is a decoder


def test_a_reader_may_close_the_pipe() -> None:
    """The schema is longer than the buffer of a pipe, so the command writes to a closed one."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "slmrec", "config", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
