"""The command line as a whole: messages, exit codes, options of every command."""

import argparse
import logging
from collections.abc import Iterator

import pytest

from slmrec.commands import main as module
from slmrec.commands.main import command_parser, main
from slmrec.errors import DataError

LOG = logging.getLogger("slmrec.somewhere")


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all commands that run something."""
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in subparsers:
        for name, inner in action.choices.items():
            yield from commands(inner, (*words, name))
    if not subparsers:
        yield words


@pytest.fixture
def report_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces `slmrec report` by a command that logs one record of each level."""

    def run(options: argparse.Namespace) -> None:
        LOG.debug("a detail")
        LOG.info("report: first line\nwith a bell \x07")
        LOG.warning("a warning \x1b[2J")
        if options.folder.name == "wrong":
            raise DataError("wrong: has a title \x1b[2J; remove it")

    monkeypatch.setattr(module.report, "run", run)


@pytest.mark.parametrize("words", list(commands(command_parser())), ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert "--quiet" in text and "--verbose" in text and " ".join(words) in text


INFO = "report: first line\nwith a bell \\x07\n"


@pytest.mark.usefixtures("report_messages")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["report", "out"], INFO),
        (["--quiet", "report", "out"], ""),
        (["report", "out", "--quiet"], ""),
        (["--verbose", "report", "out"], f"a detail\n{INFO}"),
        (["report", "--verbose", "out"], f"a detail\n{INFO}"),
    ],
)
def test_messages_are_plain_lines(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == shown
    assert captured.err == "slmrec: warning: a warning \\x1b[2J\n"


@pytest.mark.usefixtures("report_messages")
def test_errors_are_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quiet", "report", "wrong"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "slmrec: wrong: has a title \\x1b[2J; remove it"


@pytest.mark.usefixtures("report_messages")
def test_logging_of_a_python_program_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("slmrec")
    before = logger.level, list(logger.handlers)
    assert main(["report", "out"]) == 0
    assert (logger.level, list(logger.handlers)) == before
    capsys.readouterr()
    LOG.warning("no handler shows this")
    assert capsys.readouterr() == ("", "")


def test_quiet_and_verbose_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", "out", "--quiet", "--verbose"])
    assert "not allowed with argument --quiet" in capsys.readouterr().err


def test_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module.report, "run", lambda options: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["report", "out"]) == 130
    assert "interrupted; run the same command again" in capsys.readouterr().err


def test_settings_may_stand_before_and_after_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(module.stages, "run", seen.append)
    command = ["prepare", "seed=1", "--output", "out", "prepare.user_col=a=b", "--on-bad-row", "skip", "cold.share=0.1"]
    assert main(command) == 0
    assert seen[0].overrides == ["seed=1", "prepare.user_col=a=b", "cold.share=0.1"]
    for wrong in ("word", "--setting=1"):
        with pytest.raises(SystemExit):
            main([*command, wrong])
        assert f"unrecognized arguments: {wrong}\n" in capsys.readouterr().err
