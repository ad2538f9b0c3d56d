"""A model folder in other forms: an ONNX graph, the same with 8-bit weights, a folder that stands alone, an index."""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.errors import CheckpointError, ConfigError
from slmrec.folders import folder_in_place
from slmrec.inference.exportable import INPUTS, OUTPUTS, as_program, check_exportable
from slmrec.inference.faiss_index import RECALL_AT, ItemIndex
from slmrec.models.folder import (
    fingerprint_of,
    load_recommender,
    may_recommend,
    read_about,
    save_folder,
    write_vocabulary,
)
from slmrec.models.loader import merge_adapters
from slmrec.models.model import Model
from slmrec.topk import top_k
from slmrec.types import Histories

Format = Literal["onnx", "int8", "merged", "faiss"]
RECALL = 0.95
TOLERANCE = 1e-4
"""By which scores of the graph may differ from PyTorch's, relative where they are above 1."""
_MOST_IN_ONE_FILE = 2**30
"""Bytes of weights; more stand in a second file, since a protobuf ends at 2 GiB."""
_CHECKED_K = 10
_QUERIES, _QUERY_ITEMS = 1000, 5
"""Random histories, and their longest, whose user vectors an index is tuned to."""


class Checked(NamedTuple):
    """How the graph compares with PyTorch on random histories."""

    score_gap: float
    """The largest difference of a score, relative where scores are above 1."""
    overlap: float
    """Share of PyTorch's best items that are among the graph's."""


def export(model: Path, format: Format, output: Path, recall: float | None = None) -> None:
    """Writes the recommender of a folder in another form.

    Args:
        model: a model folder.
        format: `onnx` and `int8` write a file, and the vocabulary beside it; `merged` a model folder without adapters;
            `faiss` an index of the items, and its recall beside it.
        output: the file, or the folder, which must not be there yet.
        recall: of an index, the wanted share of the 10 best items; 0.95 unless given.

    Raises:
        CheckpointError: the model folder is incomplete, or the graph does not answer as the model does.
        ConfigError: a library is missing, or the file's name does not end in .onnx.
    """
    if recall is not None and format != "faiss":
        raise ConfigError(f"--recall is {recall}, which is for --format faiss; leave it out for {format}")
    if format == "merged":
        _merge(model, output)
    elif format == "faiss":
        _export_index(model, output, RECALL if recall is None else recall)
    else:
        _export_graph(model, output, int8=format == "int8")


def _merge(folder: Path, output: Path) -> None:
    model, vocabulary = load_recommender(folder)
    merged = merge_adapters(model)
    with folder_in_place(output) as target:
        save_folder(target, merged, vocabulary, read_about(folder))
    print(f"export: a model that opens without its backbone written to {output}", flush=True)


@torch.inference_mode()
def _export_index(folder: Path, output: Path, recall: float) -> None:
    model, vocabulary = load_recommender(folder)
    check_exportable(model)
    allowed, vectors = may_recommend(vocabulary), model.item_vectors().float()
    counts = torch.tensor([0, *vocabulary.counts.to_pylist()]) + (torch.arange(model.num_items + 1) > 0)
    queries = model.encode(_random_histories(model, counts.double(), _QUERIES, _QUERY_ITEMS)).users
    index = ItemIndex.build(vectors, allowed, queries, recall, fingerprint_of(folder))
    output.parent.mkdir(parents=True, exist_ok=True)
    index.save(output)
    found = index.facts
    print(
        f"export: recall@{RECALL_AT} {found.recall:.3f} against exact search, {found.num_probed} of {found.num_lists} "
        f"lists searched; index written to {output}",
        flush=True,
    )


def _random_histories(model: Model, weights: Tensor, num: int, longest: int) -> Histories:
    """Histories of items drawn by weight, of 1 to `longest` items."""
    generator = torch.Generator().manual_seed(0)
    width = min(longest, model.max_history_items)
    lengths = torch.randint(1, width + 1, (num,), generator=generator)
    points = torch.rand(num, width, dtype=torch.float64, generator=generator) * weights.sum()
    items = torch.searchsorted(weights.cumsum(0), points, right=True).clamp(max=model.num_items)
    return Histories(items * (torch.arange(width) < lengths[:, None]), lengths)


def _export_graph(folder: Path, output: Path, int8: bool) -> None:
    if output.suffix != ".onnx":
        raise ConfigError(f"{output}: a graph is written as .onnx; name the file so")
    _require_onnx()
    model, vocabulary = load_recommender(folder)
    allowed = may_recommend(vocabulary)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as aside:
        file = _in_new_folder(Path(aside) / "float32", output)
        write_graph(model, allowed, file)
        checked = check_graph(file, model, allowed)
        if not checked.score_gap <= TOLERANCE:
            raise CheckpointError(
                f"{folder}: the graph's scores differ from PyTorch's by {checked.score_gap:.1e}, expected at most "
                f"{TOLERANCE:.0e}; use the folder itself, and report this architecture"
            )
        note = f"scores differ from PyTorch's by at most {checked.score_gap:.1e}"
        if int8:
            exact, file = file, _in_new_folder(Path(aside) / "int8", output)
            quantize(exact, file)
            checked = check_graph(file, model, allowed)
            note = f"{checked.overlap:.1%} of PyTorch's best {_CHECKED_K} items of random histories stay"
        write_vocabulary(vocabulary, items_beside(file))
        for path in sorted(file.parent.iterdir(), key=lambda path: path == file):  # the graph last, when all is there
            path.replace(output.parent / path.name)
    size = output.stat().st_size / 1e6
    print(f"export: {size:.1f} MB written to {output}, its items to {items_beside(output)}; {note}", flush=True)


def _in_new_folder(folder: Path, output: Path) -> Path:
    folder.mkdir()
    return folder / output.name


def items_beside(graph: Path) -> Path:
    """Where the vocabulary of a graph stands."""
    return graph.with_suffix(".items.parquet")


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export needs {', '.join(missing)}, not installed here; run: pip install 'slmrec[onnx]'")


def write_graph(model: Model, allowed: Tensor, file: Path) -> None:
    """Writes `TopItems` of a model as ONNX, its limits among the metadata; weights above 1 GiB in FILE.data."""
    program = as_program(model, allowed)
    with _quiet():
        graph = torch.onnx.export(
            program, dynamo=True, input_names=list(INPUTS), output_names=list(OUTPUTS), verbose=False
        )
    if graph is None:
        raise CheckpointError("torch.onnx gave no graph; use the folder itself, and report this architecture")
    _name_dimensions(graph.model)
    limits = {"max_history_items": model.max_history_items, "num_items": model.num_items}
    graph.model.metadata_props["slmrec"] = json.dumps(limits)
    weights = sum(value.nbytes for value in (*program.state_dict.values(), *program.constants.values()))
    graph.save(file, external_data=weights > _MOST_IN_ONE_FILE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks that nobody can act on: of operators of libraries that are absent, of torch's own functions."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def _name_dimensions(graph: Any) -> None:
    """Readable names for the dimensions that vary, in place of the tracer's."""
    items, lengths, excluded, *_ = graph.graph.inputs
    best, _ = graph.graph.outputs
    batch = [(value.shape[0], "batch") for value in (items, lengths, excluded)]
    others = [(items.shape[1], "length"), (excluded.shape[1], "num_excluded"), (best.shape[1], "k")]
    names = {str(dim.value): name for dim, name in [*batch, *others]}
    values = [*graph.graph.inputs, *(value for node in graph.graph for value in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if str(getattr(dim, "value", None)) in names:
                value.shape[axis] = names[str(dim.value)]


Run = Callable[[Histories, Tensor, int], tuple[NDArray[np.int64], NDArray[np.float32]]]


def open_graph(file: Path, num_items: int) -> Run:
    """What runs a graph: from a batch, items to exclude, and k, to items and scores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    everything = np.ones(num_items + 1, dtype=bool)

    def run(histories: Histories, excluded: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        given = (histories.items.numpy(), histories.lengths.numpy(), excluded.numpy(), everything, np.array(k))
        best, scores = session.run(list(OUTPUTS), dict(zip(INPUTS, given, strict=True)))
        return best, scores

    return run


@torch.inference_mode()
def check_graph(file: Path, model: Model, allowed: Tensor) -> Checked:
    """Compares a graph with the model on 61 random histories of every length, what they hold left out."""
    run = open_graph(file, model.num_items)
    gaps, overlaps = [], []
    for num, longest in ((1, 1), (20, 2), (40, model.max_history_items)):
        histories = _random_histories(model, (torch.arange(model.num_items + 1) > 0).double(), num, longest)
        users, vectors = model.encode(histories).users.float(), model.item_vectors().float()
        expected, best = top_k(users, vectors, _CHECKED_K, excluded=histories.items, allowed=allowed)
        found, scores = run(histories, histories.items, expected.shape[1])
        gaps.append(_score_gap(torch.from_numpy(scores), expected))
        overlaps += [
            len({*ours} & {*theirs} - {0}) / max(1, len({*theirs} - {0}))
            for ours, theirs in zip(found.tolist(), best.tolist(), strict=True)
        ]
    return Checked(max(gaps), float(np.mean(overlaps)))


def _score_gap(found: Tensor, expected: Tensor) -> float:
    if not torch.equal(found.isneginf(), expected.isneginf()):
        return torch.inf
    shown = ~expected.isneginf()
    gaps = (found - expected)[shown].abs() / expected[shown].abs().clamp(min=1)
    return float(gaps.max()) if len(gaps) else 0.0


def quantize(source: Path, target: Path) -> None:
    """Writes a graph with 8-bit weights: of the matrix products, and of the tables where histories are read.

    Unsigned weights: signed ones lose more (`benchmarks/export.py`), and their products with unsigned activations
    overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = source.with_suffix(".folded.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises to do what has just been done
    try:
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_dynamic(folded, target, per_channel=True, weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    folded.unlink()
