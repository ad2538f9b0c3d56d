"""The log and the table of items that a run was prepared from, compared with those that a later stage is given."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from slmrec.config import Config
from slmrec.config.secrets import without_secrets
from slmrec.data.prepare import describe_source
from slmrec.errors import ConfigError
from slmrec.pipeline.stage import PLACES, finished

_LOG = logging.getLogger(__name__)


def check_sources(config: Config, output: Path) -> None:
    """Refuse a log or a table of items other than that of `prepare`, and warn about other settings of `prepare`.

    Files are compared by their content, so they may have moved. A file that is no longer there is accepted under the
    name that `prepare` was given.

    Args:
        config: Settings of a stage after `prepare`.
        output: Output folder of the run.

    Raises:
        ConfigError: The log or the table of items differs.
        CheckpointError: `prepare` is not finished.
    """
    folder = finished(output / "prepare", "prepare")
    used = without_secrets(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["prepare"])
    sources = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["sources"]
    settings = config.prepare.model_dump(mode="json")
    for name, source in (("input", sources[0]), ("items", sources[1] if len(sources) > 1 else None)):
        path = settings[name]
        if path is None or (path == used[name] and not Path(path).exists()):
            continue
        if source is None or _content(describe_source(Path(path))) != _content(source):
            raise ConfigError(
                f"prepare.{name} is {path}, but {folder} was made from {_shown(used[name], source)}; run `slmrec "
                f"prepare` with the same --config and --output first, or leave prepare.{name} out"
            )
    compared = settings.keys() - PLACES
    changed = [name for name in settings if name in compared and settings[name] != used.get(name)]
    for name in changed:
        _LOG.warning(
            "prepare.%s is %s, but %s was made with %s, which is used; run `slmrec prepare` to change it",
            *(name, json.dumps(settings[name]), folder, json.dumps(used.get(name))),
        )


def _content(source: dict[str, Any]) -> Any:
    """Return what identifies a source wherever it is: checksums, or the name of a table."""
    if "files" in source:
        return [_content(part) for part in source["files"]]
    return source.get("sha256", source.get("table"))


def _shown(path: str | None, source: dict[str, Any] | None) -> str:
    if source is None:
        return "a log without a table of items"
    return f"{path}, a file of {source['bytes']:,} bytes" if "bytes" in source else str(path)
