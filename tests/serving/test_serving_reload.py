"""A new model takes over between two requests; a damaged one never does, and the old one goes on."""

import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from servers import ITEMS, LIMITS, Client, serving, write_model

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError
from slmrec.models.folder import load_recommender, replace_vocabulary
from slmrec.serving.loading import load
from slmrec.serving.run import HttpServer, run_until_signalled
from slmrec.serving.server import ServedModel, Server


@pytest.fixture
def folder(student: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(student, tmp_path / "model"))


def test_a_new_model_takes_over_without_a_lost_request(folder: Path, tiny_dataset: Dataset) -> None:
    before = Recommender.from_pretrained(folder).recommend([["i01"]]).table["item_id"].to_pylist()
    with serving(folder) as client, ThreadPoolExecutor(5) as pool:
        assert client.ask("/reload", {})[2] == {"student": "unchanged"}
        assert client.ask("/reload", {"model": "b"})[::2] == (422, {"error": "model: Extra inputs are not permitted"})
        old = client.get("/model")["student"]["version"]
        client.recommend(session_id="s", history=["i01", "i02"])
        asked = [pool.submit(client.recommend, history=["i01"]) for _ in range(60)]
        write_model(folder, tiny_dataset, seed=7)
        after = Recommender.from_pretrained(folder).recommend([["i01"]]).table["item_id"].to_pylist()
        assert client.ask("/reload", {})[::2] == (200, {"student": "loaded"})
        new = client.get("/model")["student"]["version"]
        asked += [pool.submit(client.recommend, history=["i01"]) for _ in range(20)]
        lists = {old: before, new: after}
        answers = [each.result() for each in asked]
        assert {answer["model_version"] for answer in answers} == {old, new}
        for answer in answers:
            assert [item["item_id"] for item in answer["items"]] == lists[answer["model_version"]]
        session = client.recommend(session_id="s", events=["i03"])  # goes on, read anew by the new model
        assert session["session"] == {"session_id": "s", "new": False, "num_items": 3}
        whole = client.recommend(history=["i01", "i02", "i03"])
        assert [item["item_id"] for item in session["items"]] == [item["item_id"] for item in whole["items"]]


def test_a_session_keeps_what_a_smaller_catalogue_knows(folder: Path, tiny_dataset: Dataset) -> None:
    with serving(folder) as client:
        client.recommend(session_id="s", history=["i01", "i02"])
        _, vocabulary = load_recommender(folder)
        ids = [f"new{n}" if n == 1 else item for n, item in enumerate(vocabulary.item_ids.to_pylist())]
        replace_vocabulary(vocabulary._replace(item_ids=pa.array(ids)), folder)
        assert client.ask("/reload", {})[0] == 200
        assert client.recommend(session_id="s", events=[])["session"]["num_items"] == 1
        assert client.recommend(history=["i01"])["unknown_items"] == ["i01"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def other_vocabulary(folder: Path) -> None:
    path = folder / "items.parquet"
    pq.write_table(pq.read_table(path).slice(0, 39), path)


def not_a_number(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["item_embeddings.weight"][3] = float("nan")
    save_file(weights, path, {"format": "pt"})
    (folder / "about.json").unlink()  # whose checksum would tell as well


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (
        lambda folder: cut(folder / "model.safetensors"),
        r"model\.safetensors: cut off or damaged",
    ),
    "weights not numbers": (not_a_number, r"contain NaN or infinity"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "vocabulary cut short": (lambda folder: cut(folder / "items.parquet"), r"items\.parquet: .*copy the folder again"),
    "another vocabulary": (other_vocabulary, r"items\.parquet has 39 rows but the model knows 40 items"),
    "no JSON": (lambda folder: cut(folder / "config.json"), r"config\.json: makes no model"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "other sizes": (edit(num_items=41), r"weights missing, unknown or of another shape: item_embeddings\.weight"),
    "no sense": (edit(item_dim="wide"), r"config\.json: makes no model \(.*\); copy the folder again"),
    "another kind": (edit(model_type="bert"), r"model.*bert|bert model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_by_name(name: str, folder: Path) -> None:
    harm, message = DAMAGE[name]
    harm(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_old_model_goes_on_when_the_new_one_is_damaged(folder: Path) -> None:
    with serving(folder) as client:
        before = client.recommend(history=ITEMS[:3])
        good = (folder / "config.json").read_bytes()
        for name in ("other sizes", "weights cut short"):
            DAMAGE[name][0](folder)
            status, _, content = client.ask("/reload", {})
            assert status == 409 and content["error"].endswith("; the current model keeps serving")
            assert client.recommend(history=ITEMS[:3])["items"] == before["items"]
            (folder / "config.json").write_bytes(good)
        assert 'slmrec_reloads_total{model="student",result="refused"} 2.0' in client.get("/metrics").splitlines()


def test_a_damaged_folder_does_not_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(folder / "model.safetensors")
    assert main(["serve", "--model", str(folder), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("slmrec: ") and "model.safetensors: cut off or damaged" in told and told.count("\n") == 1


def test_two_reloads_at_once_are_one_too_many(folder: Path) -> None:
    with serving(folder) as client:
        client.server._reloaders["student"]._is_loading = True
        status, _, content = client.ask("/reload", {})
        assert (status, content["error"]) == (409, "model is already being loaded; try again when it is done")


def test_a_removed_item_is_given_to_nobody(folder: Path) -> None:
    with serving(folder) as client:
        best = client.recommend(history=["i01"])["items"][0]["item_id"]
        _, vocabulary = load_recommender(folder)
        gone = pa.array([item == best for item in vocabulary.item_ids.to_pylist()])
        replace_vocabulary(vocabulary._replace(removed=gone), folder)
        assert client.ask("/reload", {})[::2] == (200, {"student": "loaded"})
        for asked in ({"history": ["i01"]}, {"history": []}, {"history": ["i01"], "candidates": [best, "i30"]}):
            items = [item["item_id"] for item in client.recommend(k=40, **asked)["items"]]
            assert items and best not in items
        assert client.recommend(history=[best])["unknown_items"] == []


def test_a_hangup_loads_the_new_model_and_the_server_goes_on(
    folder: Path, tiny_dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """The signals are real, so the server runs in the main thread, and the client beside it."""
    caplog.set_level(logging.INFO, "slmrec.serving.run")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    server = Server({"student": ServedModel(folder, load(folder))}, LIMITS)

    def hang_up(client: Client, logged: str) -> str:
        """Send the signal, and return the version that is served once its effect was logged."""
        caplog.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        deadline = time.monotonic() + 60
        while not any(logged in message for message in caplog.messages):
            assert time.monotonic() < deadline, caplog.messages
            time.sleep(0.02)
        assert client.recommend(history=ITEMS[:3])["items"]
        return str(client.get("/model")["student"]["version"])

    def drive(client: Client) -> None:
        try:
            old = client.get("/model")["student"]["version"]
            assert hang_up(client, "serve: SIGHUP: student unchanged") == old
            write_model(folder, tiny_dataset, seed=7)
            new = hang_up(client, "serve: SIGHUP: student loaded")
            assert new != old
            cut(folder / "model.safetensors")
            assert hang_up(client, "; the current model keeps serving") == new
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with socket.create_server(("127.0.0.1", 0)) as bound, ThreadPoolExecutor(1) as pool:
            driven = pool.submit(drive, Client(bound.getsockname()[1], server))
            run_until_signalled(HttpServer(server), bound)
            driven.result()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
