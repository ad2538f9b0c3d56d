"""The tutorials: every command and every Python block is executed, in order, in an empty folder."""

import gzip
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from slmrec.commands.main import main
from slmrec.data.simulate import write_shop

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
SHORT = " ".join(f"{part}.train.num_train_epochs=1" for part in ("pretrain.sasrec", "pretrain.text", "distill"))
SMALLER = {
    "slmrec demo --output out/demo": f"slmrec demo --output out/demo {SHORT}",
    "--config smollm2": "--config tiny",
    '"20m"': '"20s"',
    " 20m": " 20s",
}
"""Replacements that make the commands take seconds instead of minutes or hours; nothing else is changed."""


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Blocks of a page that are executed: `sh` and `python`; `text` blocks are shown only."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(one[1], one[2], text[: one.start()].count("\n") + 2) for one in found]


def smaller(text: str) -> str:
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_blocks_of_a_tutorial_are_executable(page: Path) -> None:
    found = blocks(page)
    assert {block.language for block in found} <= {"sh", "python", "text"}
    assert sum(block.language == "sh" for block in found) >= 3
    for block in found:
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")
        if block.language == "text":  # installation, downloads and containers: what the tests may not do
            assert not re.search(r"^slmrec (?!data fetch)", block.text, re.MULTILINE), block.text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--output", str(folder / "out" / "demo"), *SHORT.split()]) == 0
    return folder


@pytest.fixture
def folder(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folder in which a tutorial is executed, with the files that it takes as given."""
    if page.stem == "serve":
        return Path(request.getfixturevalue("demo"))
    if page.stem == "reproduce":
        write_shop(tmp_path, num_users=80)
        for name, file in (("interactions.csv", "Beauty.txt.gz"), ("items.csv", "Beauty.items.csv.gz")):
            (tmp_path / file).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    return tmp_path


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for server in started:
        server.terminate()
        server.wait(60)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, folder: Path, servers: list[subprocess.Popen[bytes]]) -> None:
    if page.stem == "serve":
        pytest.importorskip("onnxruntime")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(page):
        if block.language == "text":
            continue
        code = smaller(block.text)
        if code.startswith("slmrec serve"):
            servers.append(subprocess.Popen(code.split(), cwd=folder, env=environment, stdout=subprocess.DEVNULL))
            wait_for(servers[-1], "http://127.0.0.1:8000/ready")
            continue
        command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}:{block.line}\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not answer")
