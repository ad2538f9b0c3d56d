"""Passwords of engines: where they may come from, and that no file, message or log of a run contains them."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pytest
import yaml
from runs import refused

from slmrec.commands.main import main
from slmrec.config import Config, PrepareConfig
from slmrec.config.load import load_config, vary
from slmrec.config.secrets import redacted, with_password, without_secrets
from slmrec.data.engine import connect
from slmrec.errors import ConfigError
from slmrec.pipeline.stage import dump

PASSWORD, TOKEN = "k9-Xq%7Evw", "t0k3nValue"
SECRETS = (PASSWORD, "k9-Xq~vw", TOKEN)
URL = f"postgres://ann:{PASSWORD}@db.example:5433/shop?sslmode=require&access_token={TOKEN}"
CLEAN = "postgres://ann@db.example:5433/shop?sslmode=require"


def assert_no_secret(text: str) -> None:
    assert text, "there must be something to search"
    assert not any(secret in text for secret in SECRETS), text


def assert_no_secret_in(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), file


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        (URL, CLEAN),
        ("postgres://ann:p@ss:word@host/shop", "postgres://ann@host/shop"),
        ("postgres://ann:p/w?#x@host/shop", "postgres://ann@host/shop"),
        ("postgres://ann:123/4@host/shop", "postgres://ann@host/shop"),
        ("postgres://ann:without-a-host", "postgres://ann"),
        ("mysql+pymysql://ann:pw@host", "mysql+pymysql://ann@host"),
        ("mysql://:pw@host/d", "mysql://@host/d"),
        ("snowflake://ann:pw@account/d/s?warehouse=w&private_key_pwd=pw", "snowflake://ann@account/d/s?warehouse=w"),
        ("duckdb:///shop.db?motherduck_token=pw&read_only=True", "duckdb:///shop.db?read_only=True"),
        ("postgres://host/d?password=pw#part", "postgres://host/d#part"),
    ],
)
def test_secrets_are_removed_from_urls_and_added_for_the_connection(url: str, clean: str) -> None:
    assert without_secrets({"engine": [url]}) == {"engine": [clean]}
    assert without_secrets(clean) == clean
    if "/4" not in url and "?#" not in url and "without" not in url:
        assert with_password(clean, None) == url
        return
    with pytest.raises(ConfigError, match=r"a password that is not percent-encoded.*%40 for @, %2F for /") as raised:
        with_password(clean, None)
    assert f"prepare.engine is {clean!r}" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "duckdb",
            "log.csv",
            "duckdb:///C:/shop.db",
            "duckdb:///a:b@c.db",
            "postgres://host:5432/d?role=a@b",
            "a:b@c",
        ),
        *("postgres://[::1]:5432/d", "postgres://ann@host/d", "postgres://host/d?passfile=/home/ann/.pgpass"),
    ],
)
def test_values_without_secrets_stay(text: str) -> None:
    assert without_secrets(text) == with_password(text, None) == text


def test_configurations_hold_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(yaml.safe_dump({"prepare": {"engine": URL}}), encoding="utf-8")
    configs = [
        load_config(file, []),
        load_config(None, [f"prepare.engine={URL}"]),
        load_config(None, [f"prepare={{engine: '{URL}'}}"]),
        vary(load_config(file, []), {"seed": 3}, "here"),
        vary(load_config(None, []), {"prepare.engine": URL}, "here"),
        Config(prepare=PrepareConfig(engine=URL)),
        Config.model_validate({"prepare": {"engine": URL}}),
    ]
    for config in configs:
        assert config.prepare.engine == CLEAN
        assert with_password(config.prepare.engine, None) == URL
        assert_no_secret(repr(config) + dump(config) + config.model_dump_json())


@pytest.mark.parametrize(
    "override",
    [
        f"prepare.engin={URL}",
        f"prepare.engine.url={URL}",
        f"prepare.engine=[{URL}",
        f"prepare={{engine: '{URL}', min_user_events: 1}}",
        f"prepare={{engin: '{URL}'}}",
        f"seed={URL}",
        f"prepare.engine_password={TOKEN}",
        f"prepare.token={TOKEN}",
    ],
)
def test_faults_of_overrides_show_no_secret(override: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engine = ["prepare.engine=duckdb:///shop.db"] * override.startswith("prepare.engine.url")
    assert_no_secret(refused(["prepare", "--output", str(tmp_path / "out"), *engine, override], capsys))


@pytest.mark.parametrize(
    "content",
    [
        f"prepare: {{engine: {URL}",
        f"prepare:\n  engine: {URL}\n bad",
        f"prepare: {{engin: '{URL}'}}",
        f"seed: {URL}",
        f"prepare: {{engine: '{URL}', split: temporal, order: file}}",
        f"prepare: {{engine: '{URL}', engine_password_file: x, min_item_events: 0}}",
        f"pretrain: {{student: {{kind: sasrec}}}}\nprepare: {{engine: '{URL}'}}",
    ],
)
def test_faults_of_files_show_no_secret(content: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(content, encoding="utf-8")
    assert_no_secret(refused(["prepare", "--config", str(file), "--output", str(tmp_path / "out")], capsys))
    with pytest.raises(ValueError, match="") as raised:  # the same settings given in Python
        Config.model_validate(
            yaml.safe_load(content) if content.endswith("}") else {"prepare": {"engine": URL, "x": 1}}
        )
    assert_no_secret(str(raised.value))


def test_options_that_do_not_exist_show_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--output", "out", f"--engine={URL}"])
    assert_no_secret(capsys.readouterr().err)


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMREC_ENGINE_PASSWORD", "a b/@")
    assert with_password("postgres://eve@host/shop", None) == "postgres://eve:a%20b%2F%40@host/shop"
    assert with_password("bigquery://project/data", None) == "bigquery://project/data"
    without_secrets("postgres://bob:own@host/shop")
    assert with_password("postgres://bob@host/shop", None) == "postgres://bob:own@host/shop"


def test_the_password_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMREC_ENGINE_PASSWORD", "other")
    file = tmp_path / "password"
    file.write_text("first: line\r\nsecond\n")
    settings = load_config(None, ["prepare.engine=postgres://eve@host/shop", f"prepare.engine_password_file={file}"])
    url = with_password(settings.prepare.engine, settings.prepare.engine_password_file)
    assert url == "postgres://eve:first%3A%20line@host/shop"


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"\nx", "its first line is empty"), (b"\xff\xfe", "is not UTF-8")]
)
def test_files_without_a_password(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"prepare.engine_password_file is '{file}': {reason}"):
        with_password("postgres://eve@host/shop", str(file))


def test_a_password_is_given_once(tmp_path: Path) -> None:
    without_secrets("postgres://zoe:own@host/shop")
    with pytest.raises(ConfigError, match="'postgres://zoe@host/shop', which has a password; give the password once"):
        with_password("postgres://zoe@host/shop", "file")
    with pytest.raises(ConfigError, match="'bigquery://project', which names no user"):
        with_password("bigquery://project", "file")
    with pytest.raises(
        ConfigError, match=r"engine_password_file is file, which has no effect: it needs prepare.engine"
    ):
        load_config(None, ["prepare.engine_password_file=file"])


@pytest.mark.parametrize("shown", [PASSWORD, "k9-Xq~vw", URL])
def test_messages_of_drivers_show_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    def fail(url: str) -> Any:
        assert url == URL
        raise OSError(f"cannot connect with {shown}\nin the host db.example")

    monkeypatch.setattr(ibis, "connect", fail)
    with pytest.raises(ConfigError, match=r"cannot connect with .* in the host db.example; expected duckdb") as raised:
        connect(URL, tmp_path, "1GB")
    assert_no_secret(str(raised.value))


def test_messages_keep_what_is_no_secret() -> None:
    text = "http://127.0.0.1:8080/x is busy; tokens=5, password: 3 letters; write to a@b; engine_password_file=x"
    assert redacted(text) == text


def test_tracebacks_show_no_secret() -> None:
    code = (
        "import sys\nfrom slmrec.commands import main\n"
        "def fail(options): raise RuntimeError('lost ' + sys.argv[1])\n"
        "main.main = lambda: fail(None)\nmain.entry()"
    )
    done = subprocess.run([sys.executable, "-c", code, URL], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuntimeError: lost postgres://ann:***@db.example" in done.stderr
    assert_no_secret(done.stderr)


@pytest.mark.usefixtures("undrawn")
def test_no_file_message_or_log_of_a_run_has_a_secret(
    tmp_path: Path,
    tiny_recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = tmp_path / "shop.db"
    with duckdb.connect(str(database)) as connection:  # a DuckDB stands in for the database of the URL
        connection.execute("create table events as select 'u' || u as user_id, 'i' || (u * 7 + t) % 40 as item_id, "
                           "t as timestamp from range(40) a(u), range(6) b(t)")  # fmt: skip
    given = []
    monkeypatch.setattr(ibis, "connect", lambda url: given.append(url) or ibis.duckdb.connect(database))
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load(tiny_recipe) | {"prepare": {"input": "events", "engine": URL}}
    content["finetune"] = {"backbone": None, "ensemble": ["sasrec"]}
    content["pretrain"]["sasrec"]["max_history_items"] = 50
    content["distill"] = {"student": {"kind": "sasrec"}, "weights": {"ce": 1.0, "cosine": 0, "norm": 0, "multiple": 0}}
    content["evaluate"] = {"protocols": ["full_history_excluded"], "timing_users": 20}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    with caplog.at_level(logging.DEBUG):
        fast = [f"{section}.train.num_train_epochs=1" for section in ("pretrain.sasrec", "distill")]
        assert main(["run", "--verbose", "--config", str(recipe), "--output", str(tmp_path / "run"), *fast]) == 0
    assert given == [URL]
    assert (tmp_path / "run" / "report.html").is_file()
    assert CLEAN in (tmp_path / "run" / "evaluate" / "config.yaml").read_text(encoding="utf-8")
    assert_no_secret_in(tmp_path / "run")
    printed = capsys.readouterr()
    assert_no_secret(printed.out + printed.err + caplog.text)
