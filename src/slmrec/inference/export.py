"""Export of model folders: an ONNX graph, with float32 or 8-bit weights, or an index of the items."""

import importlib.util
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from slmrec.errors import CheckpointError, ConfigError
from slmrec.folders import RULES
from slmrec.inference.exportable import check_exportable
from slmrec.inference.faiss_index import RECALL_AT, ItemIndex
from slmrec.inference.onnx_graph import CHECKED_K, check_graph, quantize, random_histories, write_graph
from slmrec.models.folder import fingerprint_of, load_recommender, may_recommend, write_vocabulary

_LOG = logging.getLogger(__name__)
TOLERANCE = 1e-4
"""Accepted difference between the scores of a graph and PyTorch's, relative where scores are above 1."""
_NUM_QUERIES, _MAX_QUERY_ITEMS = 1000, 5
"""Number and maximum length of the random histories for which an index is tuned."""


@torch.inference_mode()
def export_index(folder: Path, output: Path, recall: float) -> None:
    """Write a FAISS index of the items of a model, and its measured recall beside it.

    Args:
        folder: model folder.
        output: file of the index.
        recall: target share of the 10 best items that approximate search finds.

    Raises:
        CheckpointError: the model folder is incomplete.
        ConfigError: FAISS is not installed, or the recall is out of range.

    Example:
        >>> from slmrec import Recommender
        >>> export_index(Path(folder), output / "items.faiss", recall=0.9)
        >>> Recommender.from_pretrained(folder, index=output / "items.faiss").recommend([["i01"]], k=3).sizes
        (3,)
    """
    model, vocabulary = load_recommender(folder)
    check_exportable(model)
    allowed, vectors = may_recommend(vocabulary), model.item_vectors().float()
    counts = torch.tensor([0, *vocabulary.counts.to_pylist()]) + (torch.arange(model.num_items + 1) > 0)
    queries = model.encode(random_histories(model, counts.double(), _NUM_QUERIES, _MAX_QUERY_ITEMS)).users
    index = ItemIndex.build(vectors, allowed, queries, recall, fingerprint_of(folder))
    output.parent.mkdir(parents=True, exist_ok=True)
    index.save(output)
    built = index.facts
    _LOG.info(
        f"export: recall@{RECALL_AT} {built.recall:.3f} against exact search, {built.num_probed} of {built.num_lists} "
        f"lists searched; index written to {output}"
    )


def export_graph(folder: Path, output: Path, *, int8: bool) -> None:
    """Write a model as an ONNX graph, and its vocabulary beside it.

    Args:
        folder: model folder.
        output: file of the graph, FILE.onnx.
        int8: whether to quantize the weights to 8 bits.

    Raises:
        CheckpointError: the model folder is incomplete, or the scores of the graph differ from those of the model.
        ConfigError: a library is missing, or the name of the file does not end in .onnx.

    Example:
        >>> export_graph(Path(folder), output / "model.onnx", int8=False)
        >>> sorted(path.name for path in output.glob("model.*"))
        ['model.items.parquet', 'model.onnx']
    """
    if output.suffix != ".onnx":
        raise ConfigError(f"{output}: graphs are written as .onnx, got {output.suffix or 'no suffix'!r}; rename it")
    model, vocabulary = load_recommender(folder)
    check_exportable(model)
    _require_onnx()
    allowed = may_recommend(vocabulary)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as temporary:
        file = _in_new_folder(Path(temporary) / "float32", output)
        write_graph(model, allowed, file)
        checked = check_graph(file, model, allowed)
        if not checked.score_gap <= TOLERANCE:
            raise CheckpointError(
                f"{folder}: the graph's scores differ from PyTorch's by {checked.score_gap:.1e}, expected at most "
                f"{TOLERANCE:.0e}; use the folder itself, and report this architecture"
            )
        note = f"scores differ from PyTorch's by at most {checked.score_gap:.1e}"
        if int8:
            exact, file = file, _in_new_folder(Path(temporary) / "int8", output)
            quantize(exact, file)
            checked = check_graph(file, model, allowed)
            note = f"{checked.overlap:.1%} of PyTorch's best {CHECKED_K} items of random histories are kept"
        write_vocabulary(vocabulary, items_beside(file))
        for path in sorted(file.parent.iterdir(), key=lambda path: path == file):  # the graph last, when all is there
            path.replace(output.parent / path.name)
    size = output.stat().st_size / 1e6
    if (folder / RULES).exists():
        _LOG.warning("export: the rules of %s are not part of the graph", folder / RULES)
    _LOG.info(f"export: {size:.1f} MB written to {output}, its items to {items_beside(output)}; {note}")


def items_beside(graph: Path) -> Path:
    """Return the path of the vocabulary that belongs to a graph."""
    return graph.with_suffix(".items.parquet")


def _in_new_folder(folder: Path, output: Path) -> Path:
    folder.mkdir()
    return folder / output.name


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export needs {', '.join(missing)}, not installed here; run: pip install 'slmrec[onnx]'")
