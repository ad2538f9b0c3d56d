"""Files of containers and of CI name files, commands and targets that exist."""

import json
import re
import tomllib
from pathlib import Path

import yaml

from slmrec.commands.main import command_parser

ROOT = Path(__file__).parents[1]
DOCKERFILE = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_image_copies_files_that_exist_and_are_not_ignored() -> None:
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    names = [name for line in copied for name in line]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"src", "pyproject.toml", "README.md", "LICENSE"} <= set(names)  # what the wheel is built from
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in names)


def test_the_image_serves_without_rights_and_checks_its_health() -> None:
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER (?!root|0\b)", last, re.MULTILINE)
    command = json.loads(re.findall(r"^CMD (\[.*\])$", last, re.MULTILINE)[-1])
    options = command_parser().parse_args(command[1:])
    assert command[0] == "slmrec" and options.command == "serve"
    assert f"127.0.0.1:{options.port}/health" in last and f"EXPOSE {options.port}" in last
    assert options.model[0].startswith(re.findall(r"^VOLUME (\S+)$", last, re.MULTILINE)[0])


def test_the_service_serves_the_folder_that_it_mounts_on_this_machine_only() -> None:
    service = COMPOSE["services"]["slmrec"]
    options = command_parser().parse_args(service["command"][1:])
    assert [f"127.0.0.1:{options.port}:{options.port}"] == service["ports"]
    mounted = service["volumes"][0].split(":")[-2]
    assert options.model[0].startswith(f"{mounted}/") and service["volumes"][0].endswith(":ro")
    assert service["image"] == f"slmrec:{PROJECT['version']}"


def test_the_workflow_runs_targets_that_exist_on_all_supported_interpreters() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [step["run"].split()[1] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {"lint", "test", "test-all", "docs"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    supported = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported


def test_the_forms_of_issues_are_complete() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert all(entry["attributes"]["label"] for entry in form["body"])
