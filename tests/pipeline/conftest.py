"""A finished run of a tiny recipe, shared by the tests of the pipeline."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from slmrec.commands.main import main


@contextmanager
def no_reports() -> Iterator[None]:
    """Skip the report at the end of a run, which takes seconds and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.run.write_report", lambda output: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def without_reports() -> Iterator[None]:
    with no_reports():
        yield


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Record the messages that the command line shows; `messages.text` has them all."""
    caplog.set_level(logging.INFO, logger="slmrec")
    return caplog


@pytest.fixture(scope="session")
def config(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    content["evaluate"] = {"protocols": ["full_history_excluded", "full", "sampled_19"], "timing_users": 20}
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    with no_reports():
        assert main(["run", "--config", str(config), "--output", str(output)]) == 0
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def common(config: Path, output: Path) -> list[str]:
    """Options of a command on that copy."""
    return ["--config", str(config), "--output", str(output)]
