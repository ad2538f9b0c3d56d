"""The package before anything is computed: light imports and one version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import yaml
from artefacts import NUM_ITEMS, ensemble

import slmrec
from slmrec.models.card import About
from slmrec.models.folder import Vocabulary, save_folder

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


def test_models_without_adapters_need_no_peft(tmp_path: Path) -> None:
    item_ids = pa.array([f"i{item}" for item in range(NUM_ITEMS)])
    save_folder(tmp_path / "model", ensemble(), Vocabulary(item_ids, None, pa.array([1] * NUM_ITEMS)), About("tiny"))
    opened = f"import slmrec; opened = slmrec.Recommender.from_pretrained({str(tmp_path / 'model')!r})\n"
    used = f"opened.recommend([['i1']]); opened.save_pretrained({str(tmp_path / 'copy')!r})"
    loaded = modules_loaded_by(opened + used)
    assert "slmrec.models.decoder" in loaded
    assert "peft" not in loaded


def test_messages_are_silent_in_a_python_program() -> None:
    code = "import logging, slmrec; logging.getLogger('slmrec.data').warning('a message')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert slmrec.__version__ == project["version"] == citation["version"]
