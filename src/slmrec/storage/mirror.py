"""A remote folder and its copy on this machine, of which either may have changed since they were last the same."""

import filecmp
import json
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from slmrec.files import read_json, write_json
from slmrec.storage.outputs import files_below, upload_order
from slmrec.storage.remote import Remote

_WRITER, _LINKS = ".writer", ".links.json"
_STAGE = "stage.json"
_OF_THIS_MACHINE = "teacher_outputs"
"""Name of folders with intermediate results, which are computed again on another machine."""
Versions = dict[str, str]


class Mirror:
    """A remote folder of a run, and its copy.

    A file beside the copy holds the version of each file on both sides when they were last the same, and the name of
    the last writer as this machine knows it. The remote folder holds the name of its last writer, too. Local changes
    win if no other machine has written since; otherwise, the remote files win in each step that has changed there.

    Args:
        remote: The remote folder.
        folder: The copy.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote, self._folder = remote, folder
        self._record = folder.with_name("files.json")
        self._known: dict[str, list[str]] = {}
        """Remote and local version of each file when they were last the same."""
        self._links: dict[str, str] = {}
        """Targets of the links to folders, by their places, as the remote folder has them."""
        self._writer = ""
        self._is_writer = False
        """True once this process has written its name into the remote folder."""

    def begin(self) -> None:
        """Download what has changed remotely; what has changed here is uploaded by `push`.

        Raises:
            StorageError: The store refuses or cannot be reached.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        record = read_json(self._record) if self._record.is_file() else {}
        remote, local = _synced(self._remote.files()), self._local()
        if local:  # otherwise the copy was removed, and the record says nothing
            self._known, self._writer = record.get("files", {}), record.get("writer", "")
        is_last_writer = self._remote.read(_WRITER) == self._writer.encode()
        steps = _steps({*remote, *local, *self._known})
        for step, names in steps.items():
            seen = {name: self._known[name][0] for name in names if name in self._known}
            if is_last_writer or seen == {name: remote[name] for name in names if name in remote}:
                self._merge(step, names, remote, local)
            else:
                self._replace(step, names, remote, local)
        self._links = self._read_links()
        for place, target in self._links.items():
            self._link(place, target)
        self._keep()

    def push(self, training: Path | None = None) -> None:
        """Upload the files that have changed, and remove those that are gone.

        The record of a step, `stage.json`, is removed before the step changes, and uploaded after its other files.

        Args:
            training: Folder of a training, which alone is uploaded, with the record of its step; None: everything.

        Raises:
            StorageError: The store refuses or cannot be reached.
        """
        local = self._local()
        part = {name for name in {*local, *self._known} if training is None or self._is_state(name, training)}
        changed = {name for name in part & local.keys() if self._local_version(name) != local[name]}
        gone = part - local.keys()
        links = self._find_links()
        if not changed and not gone and links == self._links:
            return
        self._become_writer()
        records = {name for name in changed if _is_record(name)}
        for name in sorted(records & self._known.keys()):
            self._remote.remove(name)
        replaced = {step for step, names in _steps({*local, *self._known}).items() if names & records}
        stale = {name for name in gone if any(_is_in(name, step) for step in replaced)}
        for name in sorted(changed - records, key=upload_order):
            self._remote.upload(self._folder / name, name)
        for name in sorted(stale):
            self._remote.remove(name)
        for name in sorted(records):
            self._remote.upload(self._folder / name, name)
        for name in sorted(gone - stale, key=upload_order, reverse=True):
            self._remote.remove(name)
        remote = _synced(self._remote.files())
        same = {name for name in local.keys() & remote.keys() if name in part or name in self._known}
        self._known = {
            name: [remote[name], local[name]] if name in part else self._known[name] for name in sorted(same)
        }
        if links != self._links:
            self._remote.write(_LINKS, json.dumps(links).encode())
            self._links = links
        self._keep()

    def _become_writer(self) -> None:
        if not self._is_writer:
            writer = uuid.uuid4().hex
            self._remote.write(_WRITER, writer.encode())
            self._writer, self._is_writer = writer, True
            self._keep()

    def _merge(self, step: str, names: set[str], remote: Versions, local: Versions) -> None:
        """Keep local changes of a step that no other machine has changed, and restore what is missing here."""
        record = f"{step}/{_STAGE}".removeprefix("/")
        is_replaced = record in local and self._local_version(record) != local[record]
        is_done_with = is_replaced or (PurePosixPath(step).name.startswith(".") and not names & local.keys())
        for name in names:
            known = self._known.get(name)
            is_unchanged = known is not None and known[1] == local.get(name)
            if name not in remote:
                if is_unchanged and name in local:  # somebody has removed it there
                    self._remove(name)
                self._known.pop(name, None)
            elif (name not in local and not is_done_with) or (is_unchanged and known and known[0] != remote[name]):
                self._download(name, remote[name])
            else:
                self._known[name] = [remote[name], known[1] if known else ""]

    def _replace(self, step: str, names: set[str], remote: Versions, local: Versions) -> None:
        """Make a step what another machine has made of it."""
        if self._link_to(step):
            self._remove(step)
            local = {name: version for name, version in local.items() if name not in names}
        for name in names:
            if name not in remote:
                if name in local:
                    self._remove(name)
                self._known.pop(name, None)
            elif self._known.get(name) != [remote[name], local.get(name)]:
                self._download(name, remote[name])

    def _find_links(self) -> dict[str, str]:
        """Return the targets of all links to folders, such as `best` and those of an ablation."""
        links = {}
        for place, folders, _ in os.walk(self._folder):
            folders[:] = [name for name in folders if name[0] != "."]
            for path in (Path(place, name) for name in folders):
                if path.is_symlink():
                    links[path.relative_to(self._folder).as_posix()] = str(path.readlink())
        return dict(sorted(links.items()))

    def _read_links(self) -> dict[str, str]:
        try:
            links = json.loads(self._remote.read(_LINKS) or b"{}")
        except ValueError:
            return {}
        return {str(place): str(target) for place, target in links.items()} if isinstance(links, dict) else {}

    def _link(self, place: str, target: str) -> None:
        """Put a link in place of the copy of another folder of the run, as another machine had it."""
        path = self._folder / place
        linked = path.parent / target
        if path.is_symlink() or not path.is_dir() or Path(target).is_absolute() or not linked.is_dir():
            return
        names, root = list(files_below(path)), self._folder.resolve()
        if not all(folder.resolve().is_relative_to(root) for folder in (path, linked)):
            return
        if sorted(files_below(linked)) != sorted(names) or filecmp.cmpfiles(path, linked, names, False)[0] != names:
            return
        shutil.rmtree(path)
        path.symlink_to(target)
        for name in (f"{place}/{name}" for name in names):
            if name in self._known:
                self._known[name][1] = _version(self._folder / name)

    def _link_to(self, name: str) -> Path | None:
        """Return the link, such as `best`, through which a path leads to files of another step."""
        above = [self._folder / path for path in reversed(PurePosixPath(name).parents)]
        return next(
            (path for path in [*above, self._folder / name] if path != self._folder and path.is_symlink()), None
        )

    def _remove(self, name: str) -> None:
        """Remove a file here; what it is linked to stays."""
        (self._link_to(name) or self._folder / name).unlink(missing_ok=True)

    def _download(self, name: str, version: str) -> None:
        path = self._folder / name
        self._remote.download(name, path)
        self._known[name] = [version, _version(path)]

    def _local_version(self, name: str) -> str | None:
        return self._known[name][1] if name in self._known else None

    def _is_state(self, name: str, training: Path) -> bool:
        """Return whether a file is part of a training, or the record of its step, without which it is not resumed."""
        folder = training.relative_to(self._folder).as_posix()
        return _is_in(name, folder) or name == str(PurePosixPath(folder).parent / _STAGE)

    def _local(self) -> Versions:
        names = _synced(dict.fromkeys(files_below(self._folder, hidden=True), ""))
        return {name: _version(self._folder / name) for name in names}

    def _keep(self) -> None:
        write_json(self._record, {"writer": self._writer, "files": self._known})


def _version(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_record(name: str) -> bool:
    return name.rpartition("/")[2] == _STAGE


def _is_in(name: str, folder: str) -> bool:
    return not folder or name == folder or name.startswith(f"{folder}/")


def _steps(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the files of each step, which has a record, by its folder; other files stand each for itself."""
    found = set(names)
    steps: dict[str, set[str]] = defaultdict(set)
    for name in found:
        above = ["" if str(path) == "." else str(path) for path in PurePosixPath(name).parents]
        step = next((path for path in above if f"{path}/{_STAGE}".removeprefix("/") in found), name)
        steps[step].add(name)
    return steps


def _synced(files: Versions) -> Versions:
    """Leave out locks, temporary files, and all of an unfinished step but its record and the state of its training."""
    return {name: version for name, version in files.items() if name and _is_synced(PurePosixPath(name).parts)}


def _is_synced(parts: tuple[str, ...]) -> bool:
    for number, part in enumerate(parts):
        rest = parts[number + 1 :]
        is_state = part.endswith(".partial") and (rest == (_STAGE,) or rest[:1] == ("training",))
        if part == _OF_THIS_MACHINE or (part.startswith(".") and not is_state):
            return False
    return True
