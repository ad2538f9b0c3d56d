"""The command as a process: told to stop under load, it finishes what it accepted."""

import fcntl
import http.client
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from threading import Thread

import pytest

from slmrec.commands import serve as command
from slmrec.commands.main import main

pytestmark = pytest.mark.heavy


def clients(port: int, number: int, answered: list[int]) -> list[Thread]:
    """Each asks until it is not answered any more."""

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            try:
                connection.request(
                    "POST", "/recommend", json.dumps({"history": ["i01"]}), {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                items = json.loads(answer.read())["items"]
            except (OSError, http.client.HTTPException):
                return
            assert answer.status == 200 and len(items) == 10
            answered.append(1)

    threads = [Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def test_told_to_stop_under_load_it_finishes_what_it_accepted(student: Path) -> None:
    command = [sys.executable, "-m", "slmrec", "serve", "--model", str(student), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        assert server.stdout is not None
        started = re.search(r"http://127\.0\.0\.1:(\d+) serves the model", server.stdout.readline())
        assert started
        answered: list[int] = []
        threads = clients(int(started[1]), 8, answered)
        while len(answered) < 50:
            assert server.poll() is None
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        stopped = re.search(r"stopped; (\d+) requests accepted, (\d+) answered", server.stdout.read())
        for thread in threads:
            thread.join(60)
    assert stopped and server.returncode == 0
    assert int(stopped[1]) == int(stopped[2]) == len(answered)


def test_a_closed_terminal_ends_the_server(student: Path, tmp_path: Path) -> None:
    """A server of which nobody can see or end anything must not stay; SIGHUP alone reloads, also at a terminal."""
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "slmrec", "serve", "--model", str(student), "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: seize(terminal),  # noqa: PLW1509
        )
    os.close(terminal)
    try:
        for number, text in enumerate(("serves the model", "SIGHUP: student unchanged")):
            deadline = time.monotonic() + 120
            while text not in (tmp_path / "log").read_text():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            if number == 0:
                process.send_signal(signal.SIGHUP)
        os.close(ours)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert "serve: stopped; 0 requests accepted" in (tmp_path / "log").read_text()


def seize(terminal: int) -> None:
    """Make a terminal that of the process, in a session of its own."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_a_taken_port_and_a_missing_library_are_told(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.client.socket.create_server(("127.0.0.1", 0)) as taken:  # type: ignore[attr-defined]
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(student), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1:{port} (" in capsys.readouterr().err
    assert main(["serve", "--model", str(student), "--port", "99999"]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err
    (tmp_path / "token").write_text("two words")
    assert main(["serve", "--model", str(student), "--token-file", str(tmp_path / "token")]) == 2
    assert "contains no valid token; write one line of ASCII without spaces" in capsys.readouterr().err
    (tmp_path / "users.jsonl").write_text('{"user_id": "a"}\n')
    assert main(["serve", "--model", str(student), "--examples", str(tmp_path / "users.jsonl")]) == 2
    assert 'line 1: \'{"user_id": "a"}\' is not an example user; expected' in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.jsonl")
    for option in ("--examples", "--token-file"):
        assert main(["serve", "--model", str(student), option, str(tmp_path / "pipe.jsonl")]) == 2
        assert "is a named pipe, expected a file; save the " in capsys.readouterr().err
    (tmp_path / "users.jsonl").write_text('{"user_id": "a", "history": [], "history": [1]}\n')
    assert main(["serve", "--model", str(student), "--examples", str(tmp_path / "users.jsonl")]) == 2
    assert "is not an example user; expected" in capsys.readouterr().err
    monkeypatch.setattr(command, "LIBRARIES", ("starlette", "no_such_library"))
    assert main(["serve", "--model", str(student)]) == 2
    assert capsys.readouterr().err == (
        "slmrec: serve needs no_such_library; install them with: pip install 'slmrec[serve]'\n"
    )


def test_models_have_names(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command._folders([str(student), "b=x/y", "teacher=z"]) == {
        "student": student,
        "b": Path("x/y"),
        "teacher": Path("z"),
    }
    (tmp_path / "a=b").mkdir()
    assert command._folders([str(tmp_path / "a=b")]) == {"student": tmp_path / "a=b"}
    assert main(["serve", "--model", str(student), "--model", str(student)]) == 2
    assert "the name student is given twice; give each model a name, as NAME=DIR" in capsys.readouterr().err
