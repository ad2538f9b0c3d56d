"""`Run`: the folder of a finished run as a Python object, with its models, metrics, verdict and report."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from slmrec.auto.amounts import Amount
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.config.yaml_text import dump_yaml, parse_yaml
from slmrec.errors import CheckpointError, ConfigError
from slmrec.files import one_line, read_json, write_json, write_text
from slmrec.folders import folder_in_place
from slmrec.html_tables import html_table
from slmrec.inference.batch.recommend_file import RankOptions, recommend_file
from slmrec.inference.recommender import Recommender
from slmrec.locks import run_locked
from slmrec.models.loader import register_given
from slmrec.models.model import Model
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.new_events import evaluate_events
from slmrec.pipeline.stage import finished
from slmrec.pipeline.verdict import BEST, VERDICT, read_verdict
from slmrec.progress import without_tables
from slmrec.report import INSTALL, missing_libraries
from slmrec.storage.cache import local
from slmrec.updates.update import update
from slmrec.updates.versions import UPDATES, best_version, rollback, versions

_INPUTS = ("input", "items")
_METRICS: tuple[str, ...] = ("ndcg@10", "hit@10", "mrr", "users_per_second", "num_parameters")


class TemporaryFolder:
    """New folder that is removed when this object, or the process, ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="slmrec-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Models(Mapping[str, Recommender]):
    """Recommenders of a run by name; each is opened when it is first used."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders, self._opened = folders, dict[str, Recommender]()

    def __getitem__(self, name: str) -> Recommender:
        if name not in self._opened:
            self._opened[name] = Recommender.from_pretrained(self.folder(name))
        return self._opened[name]

    def folder(self, name: str) -> Path:
        """Return the folder of a model.

        Raises:
            ConfigError: There is no such model.
        """
        if name not in self._folders:
            raise ConfigError(f"models has no {name!r}; choose from {', '.join(self)}")
        return self._folders[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    def __repr__(self) -> str:
        return f"Models({', '.join(self)})"


class Run:
    """Finished run: what `slmrec.fit` returns, and what `slmrec run` has written.

    Args:
        folder: Output folder of the run.
        temporary: Folder that is removed when the run is no longer used; None: the folder stays.

    Raises:
        CheckpointError: The folder holds no finished run.

    Example:
        >>> from slmrec.run import run
        >>> run(config, output / "run")  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        full_history_excluded: ...
        >>> opened = Run.load(output / "run")
        >>> opened.metrics["primary"], list(opened.models)
        ('full_history_excluded', ['popularity', 'cooccurrence', 'sasrec', 'teacher', 'student'])
        >>> len(opened.models["student"].recommend([["i01"]], k=3).table)
        3
    """

    def __init__(self, folder: Path, temporary: TemporaryFolder | None = None) -> None:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; give the --output of a `slmrec run`")
        finished(folder / "evaluate", "evaluate")
        self.folder, self._temporary = folder, temporary

    @classmethod
    def load(cls, folder: str | Path, model_class: type[Model] | None = None) -> "Run":
        """Open the output folder of `slmrec run` or `fit`.

        Args:
            folder: Folder, or its URI.
            model_class: Architecture of your own that a model of the run has; no code is imported by its name.

        Raises:
            CheckpointError: The folder holds no finished run.
        """
        register_given(model_class)
        return cls(local(folder))

    @property
    def config(self) -> Config:
        """Settings of the run."""
        return load_config(self.folder / "evaluate" / "config.yaml", [])

    @cached_property
    def best(self) -> Recommender:
        """Model to ship, which the verdict names, from `best`.

        Raises:
            CheckpointError: The run has no verdict.
        """
        return Recommender.from_pretrained(_existing(self.folder / BEST))

    @cached_property
    def models(self) -> Models:
        """All models by the names of `metrics`, such as `popularity`, `sasrec`, `teacher` and `student`."""
        return Models(model_folders(self.config, self.folder))

    @property
    def metrics(self) -> dict[str, Any]:
        """Content of `evaluate/metrics.json`; of `metrics_valid.json` where only validation items were ranked."""
        name = "metrics.json" if "test" in self.config.evaluate.splits else "metrics_valid.json"
        return _read(self.folder / "evaluate" / name)

    @property
    def verdict(self) -> dict[str, Any]:
        """Content of `verdict.json`: the model to ship, and why."""
        return _read(_existing(self.folder / VERDICT))

    def evaluate(self, events: Any) -> dict[str, Any]:
        """Rank the last event of each user of a later log by all models.

        The history of a user consists of the user's events in the run and the earlier events of the later log, which is
        read with the run's settings of `prepare`. Events that the run knows already count once.

        Args:
            events: Path, URI or table of pandas, polars or Arrow.

        Returns:
            Results in the form of `metrics`, `num_users`, and `num_events_of_unknown_items`, which are left out.

        Raises:
            DataError: The log cannot be read, or no user has a newer event and an earlier one.
        """
        return evaluate_events(events, self.config, self.folder)

    def recommend_all(self, output: str | Path, k: int = 10, *, model: str | None = None) -> Path:
        """Write the k best next items of all users of the run, and return the path of the file.

        Args:
            output: File, `.parquet`, `.csv` or `.jsonl`.
            k: Number of items, at least 1.
            model: Name of a model, such as `student`; None: the model to ship.

        Raises:
            CheckpointError: The run has no verdict, or a model folder is damaged.
            ConfigError: The format is not supported, or there is no such model.
        """
        if model is None:
            folder, data = _existing(self.folder / BEST), best_version(self.folder, versions(self.folder)).folder
        else:
            folder, data = self.models.folder(model), self.folder
        recommend_file(folder, None, Path(output), RankOptions(k=k), data=data / "prepare")
        return Path(output)

    def update(self, events: Any, items: Any = None, time_budget: Amount | None = None) -> dict[str, Any] | None:
        """Train the shipped model further on newer events; `best` is the new one if it is no worse on the newest.

        Args:
            events: Path, URI or table of pandas, polars or Arrow, with the columns of the run's log.
            items: Path, URI or table of items; those that the run lacks join its catalogue.
            time_budget: Time that the update may take, in seconds or as text; None: two minutes.

        Returns:
            The content of `update.json`: what was new, the comparison and the decision; None if nothing is new.

        Raises:
            DataError: The log or the table cannot be read, or does not fit the run.
            CheckpointError: Another process writes into the run.
        """
        with without_tables():
            record = update(self.folder, events, items, time_budget=time_budget)
        self.__dict__.pop("best", None)
        return record

    def rollback(self) -> None:
        """Ship the model again that was shipped before the last update.

        Raises:
            ConfigError: The first model is shipped.
        """
        rollback(self.folder)
        self.__dict__.pop("best", None)

    @property
    def version(self) -> int:
        """Number of the update that `best` comes from; 0: the first training."""
        return best_version(self.folder, versions(self.folder)).number

    def report(self, show_user_ids: bool = False) -> Path:
        """Write the run as one HTML page, and return its path.

        Args:
            show_user_ids: Name the example users by their ids, instead of by numbers.

        Raises:
            ConfigError: A library of the extra `plots` is missing.
        """
        if missing := missing_libraries():
            raise ConfigError(f"report needs {', '.join(missing)}; install with: {INSTALL}")
        from slmrec.report.page import report

        with without_tables():
            return report(self.folder, show_user_ids=show_user_ids)

    def save(self, folder: str | Path) -> None:
        """Copy the run into a new folder, which it is in from then on; a temporary folder is removed.

        Args:
            folder: Folder that does not exist, or is empty.

        Raises:
            CheckpointError: The folder exists, or the disk is full.
        """
        target = Path(folder)
        if target.absolute().is_relative_to(self.folder.absolute()):
            raise CheckpointError(f"{target} is in {self.folder}, the folder of the run; choose another one")
        without = shutil.ignore_patterns(".lock", ".*.lock")
        with run_locked(self.folder), folder_in_place(target) as partial:
            mode = partial.stat().st_mode
            shutil.copytree(self.folder, partial, symlinks=True, dirs_exist_ok=True, ignore=without)
            partial.chmod(mode)  # a temporary folder is open to its user alone
            _rename_inputs(partial, self.folder, target)
        if self._temporary is not None:
            self._temporary.remove()
        self.folder, self._temporary = target, None
        self.__dict__.pop("models", None)  # its folders are those of the old place

    def __repr__(self) -> str:
        shown = f"Run({str(self.folder)!r}, models: {', '.join(self.models)}"
        has_updates = (self.folder / UPDATES).is_dir()
        return f"{shown}, best: {best_version(self.folder, versions(self.folder))})" if has_updates else f"{shown})"

    def _repr_html_(self) -> str:
        """Return the results of the primary protocol as a table, and the verdict."""
        content = self.metrics
        models = content["protocols"][content["primary"]]["models"]
        rows = [[name, *(values.get(metric) for metric in _METRICS)] for name, values in models.items()]
        table = html_table(["model", *_METRICS], rows)
        verdict = read_verdict(self.folder)
        lines = [] if verdict is None else verdict.lines(str(self.folder / BEST))
        shown = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return f"<p><b>{escape(str(self.folder))}</b>, {escape(content['primary'])}</p>{table}{shown}"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(
            f"{path}: missing; a run that ranks validation items and a baseline has a verdict: run `slmrec run` again "
            "with the same --output"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({one_line(error)}); run `slmrec evaluate --force`") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; run `slmrec evaluate --force`")
    return content


def _rename_inputs(folder: Path, old: Path, new: Path) -> None:
    """Name the tables of a run by their place in its new folder, in the settings and on the report's page."""

    def moved(value: str) -> str:
        return str(new / Path(value).relative_to(old)) if Path(value).is_relative_to(old) else value

    for path in (file for pattern in ("", "*/", "*/*/") for file in folder.glob(f"{pattern}config.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        values = parse_yaml("".join(lines))
        if not isinstance(values, dict) or not isinstance(prepare := values.get("prepare"), dict):
            continue
        prepare |= {name: moved(prepare[name]) for name in _INPUTS if prepare.get(name)}
        comments = [line for line in lines if line.startswith("#")]
        write_text(path, "".join(comments) + dump_yaml(values))
    if (folder / "choice.json").is_file():
        content = read_json(folder / "choice.json")
        overrides = dict(entry.partition("=")[::2] for entry in content["request"]["overrides"])
        for key in overrides.keys() & {f"prepare.{name}" for name in _INPUTS}:
            overrides[key] = json.dumps(moved(str(parse_yaml(overrides[key]))), ensure_ascii=False)
        content["request"]["overrides"] = [f"{key}={value}" for key, value in overrides.items()]
        write_json(folder / "choice.json", content)
    for page in (folder / "report.html", folder / "report" / "report.json"):
        if page.is_file():
            write_text(page, page.read_text(encoding="utf-8").replace(escape(str(old)), escape(str(new))))
