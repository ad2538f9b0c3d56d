"""`slmrec serve`: recommendations over HTTP."""

import argparse
import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import add_device_option, new_command
from slmrec.errors import ConfigError
from slmrec.serving.limits import Limits
from slmrec.storage.cache import local

LIBRARIES = ("fastapi", "fastapi_offline", "starlette", "uvicorn", "httptools", "prometheus_client")
_EPILOG = """
Examples: slmrec serve --model out/beauty/distill --teacher out/beauty/finetune
          slmrec serve --model out/beauty/distill --model sasrec=out/beauty/pretrain/sasrec
          slmrec serve --model A=out/beauty/distill --model B=out/new/distill --split 0.5 --exposures exposures
          curl -H 'Content-Type: application/json' -d '{"history": [9, 18, 27], "k": 5}' localhost:8000/recommend
The demo page is at http://127.0.0.1:8000/, the API reference at /docs; docs/serving.md explains both.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    serve = new_command(subparsers, "serve", "answer requests over HTTP, with a demo page", run, _EPILOG)
    serve.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="folder of a trained model, a path or URI, named student by default; repeat it with other names for "
        "further models, which the page shows beside the first and ?model=NAME selects",
    )
    serve.add_argument("--teacher", metavar="DIR", help="the same as --model teacher=DIR")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 for any free port")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name under which clients reach the server, such as that of a proxy; * for any. Without a token, "
        "requests for other names than localhost and --host are refused",
    )
    serve.add_argument("--token-file", type=Path, help="file with a token that every request must carry")
    serve.add_argument("--examples", type=location, help=".jsonl of user_id, history: users to choose on the page")
    serve.add_argument("--threads", type=int, help="CPU threads of the model (default: PyTorch's)")
    serve.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="A/B test of two models: share of the users, by hashed user_id, to whom the second one answers",
    )
    serve.add_argument("--salt", default="slmrec", help="text hashed with the user_id; another one divides users anew")
    serve.add_argument("--exposures", type=Path, metavar="FOLDER", help="folder for a log of the answers, in Parquet")
    add_device_option(serve)
    for limit in fields(Limits):
        option, text = f"--{limit.name.replace('_', '-')}", f"{limit.metadata['help']} (default {limit.default})"
        serve.add_argument(option, type=type(limit.default), default=limit.default, help=text)


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the models.

    Raises:
        ConfigError: a library of the extra `serve` is missing, a limit is not positive, or two models have one name.
    """
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise ConfigError(f"serve needs {', '.join(missing)}; install them with: pip install 'slmrec[serve]'")
    from slmrec.serving.run import serve

    serve(
        _folders([*options.model, *([f"teacher={options.teacher}"] if options.teacher else [])]),
        limits,
        host=options.host,
        port=options.port,
        token_file=options.token_file,
        examples=options.examples,
        allowed_hosts=options.allow_host,
        num_threads=options.threads,
        device=options.device,
        split=options.split,
        salt=options.salt,
        exposures=options.exposures,
    )


def _folders(values: list[str]) -> dict[str, Path]:
    """Return the folders of models by name from values of the form `NAME=DIR` or `DIR`."""
    folders: dict[str, Path] = {}
    for value in values:
        named = re.fullmatch("([A-Za-z0-9][A-Za-z0-9_.-]{0,49})=(.+)", value)
        name, folder = named.groups() if named and not Path(value).is_dir() else ("student", value)
        if name in folders:
            raise ConfigError(f"--model {value}: the name {name} is given twice; give each model a name, as NAME=DIR")
        folders[name] = local(folder)
    return folders
