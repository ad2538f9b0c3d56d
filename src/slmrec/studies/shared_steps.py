"""Steps of several runs, each executed once: a step with the same fingerprint in another run is a link to it."""

import logging
import os
from pathlib import Path

from slmrec.config import Config
from slmrec.errors import CheckpointError
from slmrec.folders import read_record
from slmrec.pipeline.stage import Build, fingerprint_of, run_step
from slmrec.pipeline.table import Step

_LOG = logging.getLogger(__name__)


class SharedSteps:
    """Folder with the steps of several runs, by their fingerprints.

    Args:
        folder: The folder.
        home: A run whose finished steps are used, too.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self._home = folder, home
        self._redone: set[Path] = set()

    def run(self, step: Step, config: Config, output: Path, force: bool = False, build: Build | None = None) -> Path:
        """Execute a step of a run unless a run has it already, and link it into the folder of the run.

        Args:
            step: The step.
            config: All settings.
            output: Output folder of the run.
            force: Redo the step, once.
            build: Function to execute instead of that of the stage.

        Returns:
            The folder of the step.

        Raises:
            CheckpointError: An earlier step is missing, or something is in the way of the link.
        """
        fingerprint = fingerprint_of(step, config, output)
        place, at_home = self.folder / step.folder / fingerprint[:16], self._home / step.folder
        if not force and not place.exists() and read_record(at_home).get("fingerprint") == fingerprint:
            self.take(step, output)
            return at_home
        redo = force and place not in self._redone
        run_step(step, config, output, redo, target=place, build=build, cache=self.folder / "teacher_outputs")
        self._redone.add(place)
        self._link(output / step.folder, place)
        return place

    def take(self, step: Step, output: Path) -> None:
        """Link a finished step of the home run into the folder of a run."""
        _LOG.info("%s: taken from %s", step.folder, self._home / step.folder)
        self._link(output / step.folder, self._home / step.folder)

    def _link(self, link: Path, place: Path) -> None:
        """Point a link to a folder, by a relative path; a link into this folder or the home run is replaced."""
        link.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.relpath(place.resolve(), link.parent.resolve()))
        if link.is_symlink() and self._is_own(link):
            link.unlink()
        if link.is_symlink() or link.exists():
            raise CheckpointError(f"{link} is in the way of a link to {target}; move it, or choose another --output")
        link.symlink_to(target)

    def _is_own(self, link: Path) -> bool:
        target = Path(os.path.normpath(link.parent.resolve() / link.readlink()))
        return any(target.is_relative_to(own.resolve()) for own in (self.folder, self._home))
