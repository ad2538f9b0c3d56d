"""The package before anything is computed: light imports and one version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import slmrec

ROOT = Path(__file__).parents[1]
REPORT = "import atexit, sys; atexit.register(lambda: print('\\n' + ' '.join(sys.modules)))\n"
COMMAND = "import runpy; sys.argv = {arguments}; runpy.run_module('slmrec', run_name='__main__', alter_sys=True)"
HEAVY = {"torch", "transformers", "peft", "accelerate"}


def modules_loaded_by(code: str) -> set[str]:
    """Names in sys.modules when a fresh interpreter has run the code and exits."""
    done = subprocess.run([sys.executable, "-c", REPORT + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light() -> None:
    loaded = modules_loaded_by("import slmrec")
    assert "slmrec" in loaded
    assert not loaded & {"torch", "transformers", "pydantic"}


def test_help_is_light() -> None:
    loaded = modules_loaded_by(COMMAND.format(arguments=["slmrec", "--help"]))
    assert "slmrec.commands.main" in loaded
    assert not loaded & (HEAVY | {"pyarrow", "rich", "numpy"})


def test_prepare_needs_no_torch(shop_file: Path, tmp_path: Path) -> None:
    arguments = ["slmrec", "prepare", "--input", str(shop_file), "--output", str(tmp_path / "data")]
    loaded = modules_loaded_by(COMMAND.format(arguments=arguments))
    assert (tmp_path / "data" / "dataset.json").is_file()
    assert not loaded & HEAVY


def test_messages_are_silent_in_a_python_program() -> None:
    code = "import logging, slmrec; logging.getLogger('slmrec.data').warning('a message')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert slmrec.__version__ == project["version"] == citation["version"]
