"""Seconds from an empty environment to recommendations: the wheel, its installation, and what the README does first.

The wheel is built from this tree and installed, with the extras `serve` and `plots`, into a new virtual environment;
torch comes first, as the README says. The rest runs in an empty folder, without this tree on the path: the five lines
of the README on a simulated shop, `slmrec config list`, `slmrec run --config tiny`, and the page of the server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
SHOP = """
from pathlib import Path
from slmrec.data.simulate import write_shop
write_shop(Path("out/demo/raw"), 0, {users})
"""
LOG = ("--input", "out/demo/raw/interactions.csv", "--items", "out/demo/raw/items.csv")
PORT = 8765


def main() -> None:
    """Measure the installation with one interpreter or several, print the numbers and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters, 3.11 to 3.13")
    parser.add_argument("--users", type=int, default=300, help="number of users of the simulated shop")
    parser.add_argument("--time-budget", default="1m", help="time budget of the five lines")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "install.json")
    options = parser.parse_args()
    report = {}
    for python in options.python:
        with TemporaryDirectory() as folder:
            numbers = measure(python, Path(folder), options.users, options.time_budget)
        report[str(numbers.pop("python"))] = numbers
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def measure(python: str, folder: Path, users: int, time_budget: str) -> dict[str, float | str]:
    """Install the wheel with an interpreter and return seconds by step; a step that fails raises an error.

    Args:
        python: interpreter of the new environment.
        folder: empty folder for the wheel, the environment and the outputs.
        users: number of users of the simulated shop.
        time_budget: time budget of the five lines, as in `--time-budget`.
    """
    bin_folder, empty = folder / "venv" / "bin", folder / "empty"
    (empty / "out" / "demo" / "raw").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def call(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    pip = (bin_folder / "python", "-m", "pip", "--disable-pip-version-check", "-q")
    steps: dict[str, Callable[[], object]] = {
        "venv_s": lambda: call(python, "-m", "venv", folder / "venv"),
        "wheel_s": lambda: call(*pip, "wheel", "--no-deps", "-w", folder / "dist", ROOT),
        "install_torch_s": lambda: call(*pip, "install", torch()),
        "install_slmrec_s": lambda: call(*pip, "install", f"{wheel_of(folder / 'dist')}[serve,plots]"),
        "config_list_s": lambda: call(bin_folder / "slmrec", "config", "list"),
        "five_lines_s": lambda: (
            call(bin_folder / "python", "-c", SHOP.format(users=users)),
            call(bin_folder / "python", "-c", five_lines(time_budget)),
        ),
        "run_tiny_s": lambda: call(bin_folder / "slmrec", "run", "--config", "tiny", *LOG, "--output", "out/tiny"),
        "page_s": lambda: page(
            [str(bin_folder / "slmrec"), "serve", "--model", "out/tiny/distill"], empty, environment
        ),
    }
    numbers: dict[str, float | str] = {
        "python": call(python, "-c", "import platform; print(platform.python_version())").strip()
    }
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        numbers[name] = round(time.perf_counter() - start, 1)
    return numbers


def torch() -> str:
    """Return the release of torch that the tests ran with, as pip takes it."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return next(line for line in constraints.splitlines() if line.startswith("torch=="))


def wheel_of(folder: Path) -> Path:
    """Return the wheel of slmrec in a folder."""
    return next(folder.glob("slmrec-*.whl"))


def five_lines(time_budget: str) -> str:
    """Return the first Python example of the README, with another time budget."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n", 1)[1].split("```", 1)[0]
    return re.sub(r'time_budget="\w+"', f'time_budget="{time_budget}"', code)


def page(command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """Start the server, wait for it, and read its page."""
    server = subprocess.Popen(
        [*command, "--port", str(PORT)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {server.returncode}") from None
                time.sleep(0.2)
            else:
                if "<title>" not in text:
                    raise RuntimeError(f"not a page: {text[:200]}")
                return
        raise RuntimeError(f"{' '.join(command)} did not answer within 120 s")
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
