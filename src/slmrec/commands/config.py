"""`slmrec config`: the recipes of the package, their settings, and the schema of all settings."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command

if TYPE_CHECKING:
    from slmrec.config import Config

_SHOW_EPILOG = (
    "Example: slmrec config show words prepare.time_col=when > mine.yaml, and then: slmrec run --config mine.yaml"
)
_SCHEMA_EPILOG = (
    "Example: slmrec config schema > slmrec.schema.json\n"
    "Editors with the YAML language server complete and check a file that begins with\n"
    "# yaml-language-server: $schema=slmrec.schema.json"
)


def add_parser(subparsers: Any) -> None:
    """Add the commands `config list`, `config show` and `config schema`."""
    inner = new_command(subparsers, "config", "list recipes, show settings and their schema").add_subparsers(
        dest="config_command", required=True, metavar="COMMAND"
    )
    new_command(inner, "list", "list the recipes of the package", _list)
    text = "show all settings of a recipe with their defaults, as YAML for --config"
    show = new_command(inner, "show", text, _show, _SHOW_EPILOG)
    show.add_argument("name", type=location, metavar="NAME", help="recipe (for example words), or YAML file")
    show.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings that replace those of the recipe"
    )
    new_command(inner, "schema", "show the JSON Schema of the settings, for editors", _schema, _SCHEMA_EPILOG)


def _list(_: argparse.Namespace) -> None:
    from slmrec.config.load import load_config
    from slmrec.recipes import purpose, recipe_names

    for name in recipe_names():
        print(f"{name:<13}{_titles(load_config(name, [])):<17}{purpose(name)}")
    print("`slmrec config show NAME` shows all settings of a recipe; `--config NAME` runs it")


def _titles(config: "Config") -> str:
    required = {text.required for text in config.item_text.values() if not text.reads_file}
    if not required:
        return "without titles"
    return "needs titles" if True in required else "titles optional"


def _show(options: argparse.Namespace) -> None:
    from slmrec.config.load import load_config
    from slmrec.pipeline.stage import dump

    print(dump(load_config(options.name, options.overrides)), end="")


def _schema(_: argparse.Namespace) -> None:
    from slmrec.config import Config

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print(json.dumps(dialect | Config.model_json_schema(), indent=2))
