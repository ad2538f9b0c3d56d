"""Hooks of the documentation site: files of the repository that pages link to, and pages made from the code."""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("CHANGELOG.md", "benchmarks/peers/README.md", "benchmarks/results/prepare.json")
"""Files outside `docs` that pages link to, besides those of `examples`; they are part of the site."""
WIDTH = "100"
"""Characters in a line of help."""


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside `docs`."""
    from mkdocs.structure.files import File

    examples = (str(path.relative_to(ROOT)) for path in sorted((ROOT / "examples").glob("*.[pi]*")))
    for name in (*COPIED, *examples):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Mend links to files outside `docs`, and fill the pages of the reference."""
    source = PurePosixPath(page.file.src_uri)
    if source.parent == PurePosixPath() and source.name != "CHANGELOG.md":
        markdown = markdown.replace("](../", "](")
    if source.name == "CHANGELOG.md":
        markdown = markdown.replace("](docs/", "](")
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", commands_page())
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings_page())
    return markdown


def commands_page() -> str:
    """Return the help of every command, as Markdown."""
    from slmrec.commands.main import command_parser

    os.environ["COLUMNS"] = WIDTH
    return "\n".join(
        f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in _commands(command_parser())
    )


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the commands that execute something, those inside other commands too."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        for command in action.choices.values():
            yield from _commands(command)


def settings_page() -> str:
    """Return tables of all settings, a section each, as Markdown."""
    from slmrec.config import Config

    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    simple = {name: entry for name, entry in schema["properties"].items() if not _variants(entry, definitions)}
    text = f"## Top level\n\n{_table('', simple, definitions)}"
    for name, entry in schema["properties"].items():
        if name not in simple:
            text += _section(name, entry, definitions)
    return text


def _section(path: str, entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the tables of a section and, after it, of the sections in it."""
    text = ""
    by_name = "additionalProperties" in entry and "properties" not in entry and "$ref" not in entry
    path = f"{path}.NAME" if by_name else path
    variants = _variants(entry, definitions)
    for variant in variants:
        kind = variant["properties"].get("kind", {}).get("const")
        several = len(variants) > 1 and kind
        text += f"\n## {path}{f' (kind: {kind})' if several else ''}\n\n{variant.get('description', '')}\n\n"
        text += _table(f"{path}.", variant["properties"], definitions)
        for name, inner in variant["properties"].items():
            if _variants(inner, definitions):
                text += _section(f"{path}.{name}", inner, definitions).replace("\n## ", "\n### ")
    return text


def _variants(entry: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects that a setting can be; none if it is a plain value."""
    if "$ref" in entry:
        return _variants(definitions[entry["$ref"].rsplit("/", 1)[-1]], definitions)
    if "properties" in entry:
        return [entry]
    options = [*entry.get("anyOf", ()), *entry.get("oneOf", ())]
    if isinstance(entry.get("additionalProperties"), dict):
        options.append(entry["additionalProperties"])
    return [variant for option in options for variant in _variants(option, definitions)]


def _table(prefix: str, properties: dict[str, Any], definitions: dict[str, Any]) -> str:
    rows = [
        f"| `{prefix}{name}` | {_type(entry, definitions)} | {_default(entry)} | {_meaning(entry)} |"
        for name, entry in properties.items()
    ]
    return "\n".join(["| setting | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _type(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return what a setting may be, in a few words."""
    if _variants(entry, definitions):
        return "section"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_type(option, definitions) for option in entry["anyOf"]))
    if entry.get("type") == "array":
        return f"list of {_type(entry.get('items', {}), definitions)}"
    return str(entry.get("type", "any"))


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default", "")
    return "" if isinstance(value, dict) or value == "" else f"`{_cell(_yaml(value))}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _meaning(entry: dict[str, Any]) -> str:
    return _cell(entry.get("description", ""))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
