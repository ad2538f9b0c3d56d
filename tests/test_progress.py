"""Progress on terminals, in notebooks and in log files."""

import builtins
import io
import logging
import sys
from typing import Any

import pytest
from rich.console import Console

from slmrec import progress as module
from slmrec.progress import progress


def use_console(monkeypatch: pytest.MonkeyPatch, **options: Any) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(module, "get_console", lambda: Console(file=stream, **options))
    return stream


def without_ipywidgets(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        assert not name.startswith(("ipywidgets", "IPython")), name
        return imported(name, *rest)

    monkeypatch.delitem(sys.modules, "ipywidgets", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)


def run_loop() -> None:
    with progress("evaluate: users", total=1000) as advance:
        for _ in range(4):
            advance(250)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    stream = use_console(monkeypatch, force_terminal=True, force_jupyter=False)
    run_loop()
    assert "evaluate: users" in stream.getvalue()
    assert "1000/1000" in stream.getvalue()
    assert not caplog.messages


@pytest.mark.parametrize("notebook", [True, False])
def test_notebooks_and_files_get_occasional_log_lines(
    notebook: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    without_ipywidgets(monkeypatch)
    stream = use_console(monkeypatch, force_terminal=notebook, force_jupyter=notebook)
    times = iter([0.0, 10.0, 35.0, 40.0, 70.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    run_loop()
    assert caplog.messages == ["evaluate: users: 500 of 1,000, about 35 s left", "evaluate: users: 1,000 of 1,000"]
    assert not stream.getvalue()
    assert not [warning for warning in recwarn if "ipywidgets" in str(warning.message)]


def test_a_loop_of_unknown_length_is_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    use_console(monkeypatch, force_jupyter=True)
    with progress("items") as advance:
        advance(3)
    assert caplog.messages == ["items: 3"]


def test_a_quiet_logger_shows_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "slmrec")
    stream = use_console(monkeypatch, force_terminal=True, force_jupyter=False)
    run_loop()
    assert not stream.getvalue()
    assert not caplog.messages
