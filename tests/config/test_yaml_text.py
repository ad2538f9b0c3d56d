"""YAML from strangers: repeated keys, bombs and values of the wrong tag are one line, and cost little."""

import os
from pathlib import Path

import pytest

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.config.yaml_text import MAX_YAML_BYTES, parse_yaml
from slmrec.errors import ConfigError

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", r"the key 'seed' occurs twice in line 2"),
        ("pretrain:\n  sasrec: {hidden_size: 8, 'hidden_size': 9}", r"the key 'hidden_size' occurs twice in line 2"),
        ("pretrain: {0x1: {}, 1: {}}", r"the key 1 occurs twice in line 1"),
        (ALIASES, r"more than 100,000 values in line \d"),
        ("seed: &a [*a]", r"an alias of a value inside that value in line 1"),
        ("[" * 2_000, r"values are nested too deeply"),
        ("a: " + "[" * 70 + "]" * 70, r"values are nested more than 64 levels deep"),
        ("#" * (MAX_YAML_BYTES + 1), r"it is larger than 131,072 bytes"),
        ("seed: 2020-13-45", r"month must be in 1\.\.12"),
        ("seed: !!bool maybe", r"a value does not have the type of its tag \('maybe'\)"),
        ("seed: !!timestamp x", r"a value does not have the type of its tag"),
        ("seed: !!python/object/apply:os.getpid []", r"could not determine a constructor for the tag"),
        ("seed: \0", r"unacceptable character #x0000: special characters"),
        ("seed: " + "9" * 5_000, r"Exceeds the limit"),
    ],
)
def test_a_file_is_refused_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: not valid YAML: {message}") as caught:
        load_config(path, [])
    assert len(str(caught.value)) < 500
    assert main(["run", "--config", str(path), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"slmrec: {caught.value}\n"


def test_a_repeated_key_in_an_override_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override 'prepare=\{core: 1, core: 2\}': .*the key 'core' occurs twice"):
        load_config(None, ["prepare={core: 1, core: 2}"])


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: is a named pipe, expected a YAML file or a recipe; save"):
        load_config(tmp_path / "recipe.yaml", [])
    with pytest.raises(ConfigError, match=r"/dev/null: is a device, expected a YAML file"):
        load_config("/dev/null", [])


def test_anchors_and_merged_keys_are_read() -> None:
    text = "a: &a {p: 1, q: [1, 2]}\nb: {<<: *a, p: 2}\nc: *a\nd:\n"
    assert parse_yaml(text) == {
        "a": {"p": 1, "q": [1, 2]},
        "b": {"p": 2, "q": [1, 2]},
        "c": {"p": 1, "q": [1, 2]},
        "d": None,
    }
    assert parse_yaml("") is None
