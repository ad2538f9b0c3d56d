"""Graphs answer as the model folder does; a merged folder opens without the backbone."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from artefacts import LLAMA, MODELS, NUM_ITEMS, adapted_student, decoder, ensemble
from hypothesis import given, settings
from hypothesis import strategies as st

import slmrec.inference.export
from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.inference.export import export_graph, export_index
from slmrec.inference.exportable import exportable
from slmrec.inference.onnx_graph import GraphCheck, check_graph, open_graph
from slmrec.models.backbone import random_decoder
from slmrec.models.baselines import build_baseline
from slmrec.models.folder import load_recommender, may_recommend, save_recommender
from slmrec.models.loader import merge_adapters
from slmrec.models.model import Model
from slmrec.types import Histories

ITEMS = [f"i{n:02d}" for n in range(NUM_ITEMS)]
ADAPTED: dict[str, Callable[[], Model]] = {
    "lora": lambda: decoder(lora=True),
    "student": adapted_student,
    "in an ensemble": lambda: ensemble(True),
}


def histories(*rows: list[int]) -> Histories:
    lengths = torch.tensor([len(row) for row in rows])
    items = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for number, row in enumerate(rows):
        items[number, : len(row)] = torch.tensor(row)
    return Histories(items, lengths)


@torch.no_grad()
@pytest.mark.parametrize("name", [*MODELS, *ADAPTED])
def test_what_is_exported_gives_the_models_own_vectors(name: str) -> None:
    model = (MODELS | ADAPTED)[name]()
    batch = histories([1, 2, 3, 4, 5, 6], [7], [9, 8])
    expected = model.encode(batch).users
    copied = exportable(model)
    torch.testing.assert_close(copied.encode(batch).users, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(batch).users, expected)  # the model itself stays as it was


def saved(model: Model, dataset: Dataset, folder: Path) -> Path:
    save_recommender(model, dataset, folder, "tiny", {})
    return folder


@pytest.fixture(scope="module")
def graph(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of a decoder with titles and SASRec, of which two items have been removed."""
    folder = tmp_path_factory.mktemp("graph")
    saved(ensemble(), tiny_dataset, folder / "whole")
    (folder / "gone.csv").write_text("item_id\ni03\ni11\n", encoding="utf-8")
    where = ["--model", str(folder / "whole"), "--items", str(folder / "gone.csv")]
    assert main(["items", "remove", *where, "--output", str(folder / "model")]) == 0
    given_options = ["--model", str(folder / "model"), "--output", str(folder / "student.onnx")]
    assert main(["export", "--format", "onnx", *given_options]) == 0
    return folder


@pytest.fixture(scope="module")
def answer(graph: Path) -> Callable[..., list[tuple[str, float]]]:
    """The lines of docs/serving.md."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph / "student.onnx")
    longest = json.loads(session.get_modelmeta().custom_metadata_map["slmrec"])["max_history_items"]
    item_ids = pq.read_table(graph / "student.items.parquet")["item_id"].to_pylist()
    items = {item_id: item for item, item_id in enumerate(item_ids, 1)}

    def recommend(
        history: list[str], k: int, filter_seen: bool, candidates: set[str] | None
    ) -> list[tuple[str, float]]:
        known = [items[item_id] for item_id in history]
        allowed = np.ones(len(items) + 1, dtype=bool)
        if candidates is not None:
            allowed[:] = False
            allowed[[items[item_id] for item_id in candidates]] = True
        inputs = {
            "items": np.array([known[-longest:]]),
            "lengths": np.array([min(len(known), longest)]),
            "excluded": np.array([known if filter_seen else [0]]),
            "allowed": allowed,
            "k": np.array(k),
        }
        (best,), (scores,) = session.run(["best", "scores"], inputs)
        return [(item_ids[item - 1], float(score)) for item, score in zip(best, scores, strict=True) if item]

    return recommend


@pytest.mark.heavy
@given(
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=12),
    st.integers(1, 60),
    st.booleans(),
    st.none() | st.sets(st.sampled_from(ITEMS), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_a_graph_gives_what_python_gives(
    graph: Path,
    answer: Callable[..., list[tuple[str, float]]],
    history: list[str],
    k: int,
    filter_seen: bool,
    candidates: set[str] | None,
) -> None:
    wanted = sorted(candidates) if candidates else None
    expected = python(graph).recommend([history], k, filter_seen=filter_seen, candidates=wanted).table
    found = answer(history, k, filter_seen, candidates)
    assert [item for item, _ in found] == expected["item_id"].to_pylist()
    assert [score for _, score in found] == pytest.approx(expected["score"].to_pylist(), rel=1e-4, abs=1e-4)


OPENED: dict[Path, Recommender] = {}


def python(graph: Path) -> Recommender:
    return OPENED.setdefault(graph, Recommender.from_pretrained(graph / "model"))


@pytest.mark.heavy
def test_any_number_of_users_at_once(graph: Path) -> None:
    run = open_graph(graph / "student.onnx", NUM_ITEMS)
    batch = histories([1, 2, 3, 4, 5, 6], [7], [9, 8])
    together, scores = run(batch, batch.items, 7)
    assert together.shape == scores.shape == (3, 7)
    for row, length in enumerate(batch.lengths.tolist()):
        single = histories(batch.items[row, :length].tolist())
        best, values = run(single, single.items, 7)
        assert best.tolist() == [together[row].tolist()]
        np.testing.assert_allclose(values[0], scores[row], rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
def test_dimensions_have_names(graph: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph / "student.onnx")
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "items": ["batch", "length"],
        "lengths": ["batch"],
        "excluded": ["batch", "num_excluded"],
        "allowed": [NUM_ITEMS + 1],
        "k": [],
        "best": ["batch", "k"],
        "scores": ["batch", "k"],
    }


@pytest.mark.heavy
def test_eight_bits_are_smaller_and_nearly_as_good(
    tiny_dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slmrec")
    folder = saved(MODELS["sasrec"](), tiny_dataset, tmp_path / "model")
    file = tmp_path / "small.onnx"
    export_graph(folder, file, int8=True)
    assert "of PyTorch's best 10 items of random histories are kept" in caplog.text
    model, vocabulary = load_recommender(folder)
    checked = check_graph(file, model, may_recommend(vocabulary))
    assert checked.overlap > 0.6 and checked.score_gap > 1e-6
    assert b"MatMulInteger" in file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small.items.parquet", "small.onnx"]


@pytest.mark.heavy
def test_a_graph_that_answers_otherwise_is_not_written(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(MODELS["sasrec"](), tiny_dataset, tmp_path / "model")
    monkeypatch.setattr(slmrec.inference.export, "write_graph", lambda model, allowed, file: file.touch())
    monkeypatch.setattr(slmrec.inference.export, "check_graph", lambda *_: GraphCheck(0.5, 1.0))
    with pytest.raises(CheckpointError, match=r"differ from PyTorch's by 5.0e-01, expected at most 1e-04"):
        export_graph(folder, tmp_path / "student.onnx", int8=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", list(ADAPTED))
def test_a_merged_folder_opens_without_the_backbone(
    name: str, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ADAPTED[name]()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random_decoder(LLAMA).save_pretrained("tiny")  # the backbone that the folder of the adapters names
    saved(model, tiny_dataset, tmp_path / "adapted")
    merge = ["export", "--format", "merged", "--model", str(tmp_path / "adapted"), "--output", str(tmp_path / "m")]
    assert main(merge) == 0
    shutil.rmtree("tiny")
    merged = Recommender.from_pretrained(tmp_path / "m")
    batch = histories([1, 2, 3], [4])
    with torch.no_grad():
        torch.testing.assert_close(merged.model.encode(batch).users, model.encode(batch).users, rtol=1e-4, atol=1e-5)
    assert not list((tmp_path / "m").glob("adapter*"))
    with pytest.raises(CheckpointError, match="the model has no adapters"):
        merge_adapters(merged.model)


def test_wrong_exports_are_refused(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(MODELS["sasrec"](), tiny_dataset, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"student.bin: graphs are written as .onnx, got '.bin'; rename it"):
        export_graph(folder, tmp_path / "student.bin", int8=False)
    arguments = ["export", "--model", str(folder), "--output", str(tmp_path / "student.onnx"), "--format"]
    assert main([*arguments, "merged"]) == 2
    assert "the model has no adapters" in capsys.readouterr().err
    assert main([*arguments, "onnx", "--recall", "0.9"]) == 2
    assert "--recall is 0.9, which is only for --format faiss; leave it out for onnx" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ConfigError, match=r"export needs onnx, not installed here; run: pip install 'slmrec\[onnx\]'"):
        export_graph(folder, tmp_path / "student.onnx", int8=False)


@pytest.mark.parametrize("form", ["onnx", "faiss"])
def test_models_that_add_scores_to_single_items_are_not_exported(
    form: str, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    folder = saved(build_baseline("cooccurrence", tiny_dataset), tiny_dataset, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"export: Cooccurrence adds scores to single items.*use its model folder"):
        if form == "faiss":
            export_index(folder, tmp_path / "model.faiss", 0.9)
        else:
            export_graph(folder, tmp_path / "model.onnx", int8=False)
