"""ONNX graphs of recommenders: writing, checking and 8-bit quantization."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.errors import CheckpointError
from slmrec.inference.exportable import INPUTS, OUTPUTS, TIMES, as_program
from slmrec.models.model import Model
from slmrec.topk import top_k
from slmrec.types import PER_SECOND, Histories

CHECKED_K = 10
"""Items of each list that `check_graph` compares."""
_MAX_BYTES_IN_ONE_FILE = 2**30
"""Bytes of weights in the graph's own file; more go into a second file, since a protobuf is limited to 2 GiB."""


class GraphCheck(NamedTuple):
    """Agreement of a graph with PyTorch on random histories."""

    score_gap: float
    """Largest difference of a score, relative where scores are above 1."""
    overlap: float
    """Share of PyTorch's best items that are also among the best items of the graph."""


def random_histories(model: Model, weights: Tensor, num_users: int, max_items: int) -> Histories:
    """Return histories of 1 to `max_items` items, drawn with a fixed seed.

    Args:
        model: recommender that will read the histories.
        weights: (V+1,) float64, sampling weight of each item.
        num_users: number of histories.
        max_items: maximum number of items of a history.
    """
    generator = torch.Generator().manual_seed(0)
    width = min(max_items, model.max_history_items)
    lengths = torch.randint(1, width + 1, (num_users,), generator=generator)
    points = torch.rand(num_users, width, dtype=torch.float64, generator=generator) * weights.sum()
    items = torch.searchsorted(weights.cumsum(0), points, right=True).clamp(max=model.num_items)
    times = None
    if model.timestamp_unit is not None:  # the time between two events is up to some years
        gaps = 10 ** (9 * torch.rand(num_users, width, generator=generator)) - 1
        times = PER_SECOND[model.timestamp_unit] * gaps.long().cumsum(1)
    return Histories(items * (torch.arange(width) < lengths[:, None]), lengths, times)


def write_graph(model: Model, allowed: Tensor, file: Path) -> None:
    """Write a recommender as an ONNX graph, with its limits as metadata.

    Args:
        model: the recommender.
        allowed: (V+1,) bool, the items that may be recommended.
        file: the graph; weights above 1 GiB go into FILE.data.

    Raises:
        CheckpointError: torch cannot export the model.
    """
    program = as_program(model, allowed)
    inputs = INPUTS if model.timestamp_unit is None else (*INPUTS, TIMES)
    with _quiet():
        graph = torch.onnx.export(
            program, dynamo=True, input_names=list(inputs), output_names=list(OUTPUTS), verbose=False
        )
    if graph is None:
        raise CheckpointError("torch.onnx returned no graph; use the model folder itself, and report this architecture")
    _name_dimensions(graph.model)
    limits: dict[str, int | str] = {"max_history_items": model.max_history_items, "num_items": model.num_items}
    if model.timestamp_unit is not None:
        limits["timestamp_unit"] = model.timestamp_unit
    graph.model.metadata_props["slmrec"] = json.dumps(limits)
    weights = sum(value.nbytes for value in (*program.state_dict.values(), *program.constants.values()))
    graph.save(file, external_data=weights > _MAX_BYTES_IN_ONE_FILE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings that require no action: operators of absent libraries, deprecations in torch."""
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
    """Give the dynamic dimensions readable names instead of the tracer's."""
    items, lengths, excluded, *_ = graph.graph.inputs
    best, _ = graph.graph.outputs
    batch = [(value.shape[0], "batch") for value in (items, lengths, excluded)]
    widths = [(items.shape[1], "length"), (excluded.shape[1], "num_excluded"), (best.shape[1], "k")]
    names = {str(dim.value): name for dim, name in [*batch, *widths]}
    values = [*graph.graph.inputs, *(value for node in graph.graph for value in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if str(getattr(dim, "value", None)) in names:
                value.shape[axis] = names[str(dim.value)]


Run = Callable[[Histories, Tensor, int], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Function of histories, the excluded items (B, E) and k; returns the best items and their scores, (B, k) each."""


def open_graph(file: Path, num_items: int) -> Run:
    """Open a graph in onnxruntime and return the function that runs it on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    all_items = np.ones(num_items + 1, dtype=bool)

    def run(histories: Histories, excluded: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        values = (histories.items.numpy(), histories.lengths.numpy(), excluded.numpy(), all_items, np.array(k))
        inputs = dict(zip(INPUTS, values, strict=True))
        if histories.times is not None:
            inputs[TIMES] = histories.times.numpy()
        best, scores = session.run(list(OUTPUTS), inputs)
        return best, scores

    return run


@torch.inference_mode()
def check_graph(file: Path, model: Model, allowed: Tensor) -> GraphCheck:
    """Compare a graph with its model on 61 random histories of all lengths; items of the history are excluded."""
    run = open_graph(file, model.num_items)
    gaps, overlaps = [], []
    for num_users, max_items in ((1, 1), (20, 2), (40, model.max_history_items)):
        histories = random_histories(model, (torch.arange(model.num_items + 1) > 0).double(), num_users, max_items)
        users, vectors = model.encode(histories).users.float(), model.item_vectors().float()
        expected, best = top_k(users, vectors, CHECKED_K, excluded=histories.items, allowed=allowed)
        graph_best, scores = run(histories, histories.items, expected.shape[1])
        gaps.append(_score_gap(torch.from_numpy(scores), expected))
        overlaps += [
            len({*in_graph} & {*in_torch} - {0}) / max(1, len({*in_torch} - {0}))
            for in_graph, in_torch in zip(graph_best.tolist(), best.tolist(), strict=True)
        ]
    return GraphCheck(max(gaps), float(np.mean(overlaps)))


def _score_gap(scores: Tensor, expected: Tensor) -> float:
    if not torch.equal(scores.isneginf(), expected.isneginf()):
        return torch.inf
    ranked = ~expected.isneginf()
    gaps = (scores - expected)[ranked].abs() / expected[ranked].abs().clamp(min=1)
    return float(gaps.max()) if len(gaps) else 0.0


def quantize(source: Path, target: Path) -> None:
    """Write a graph with 8-bit weights in the matrix products and in the item tables.

    The weights are unsigned: signed ones lose more accuracy (`benchmarks/export.py`), and their products with unsigned
    activations overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = source.with_suffix(".folded.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends the step that has just been done
    try:
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_dynamic(folded, target, per_channel=True, weight_type=QuantType.QUInt8)
    finally:
        root.setLevel(level)
    folded.unlink()
