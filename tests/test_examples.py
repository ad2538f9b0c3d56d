"""The examples in docstrings run, and what people call from Python has one."""

import doctest
import re
from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import slmrec
from slmrec import Config
from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig

SOURCE = Path(slmrec.__file__).parent
ROOT = Path(__file__).parents[1]
EXTRAS = {"slmrec.inference.export": "onnxruntime", "slmrec.inference.faiss_index": "faiss"}
"""Modules whose examples need an extra."""
MODULES = sorted(
    ".".join(("slmrec", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
CALLED = {
    "callbacks": ("Callback",),
    "config": ("Config",),
    "config.load": ("load_config", "vary"),
    "data.dataset": ("Dataset", "Samples"),
    "data.statistics.describe": ("describe",),
    "evaluation.candidates": ("draw_negatives",),
    "evaluation.diversity": ("coverage", "gini", "intra_list_distances", "list_metrics", "popularity_lift"),
    "evaluation.metrics": ("ranking_metrics", "ranks_of_targets", "user_metrics"),
    "evaluation.rank": ("EncoderScorer", "eval_mode", "evaluate_scorer", "throughput"),
    "evaluation.statistics": ("bootstrap_interval", "compare_means", "compare_ratio", "holm", "sign_flip_test"),
    "inference.catalogue": ("Catalogue",),
    "inference.export": ("export_graph", "export_index"),
    "inference.faiss_index": ("ItemIndex",),
    "inference.freeze": ("freeze",),
    "inference.items": ("add_items", "mark_items"),
    "inference.ranking": ("Ranker",),
    "inference.recommendations": ("Recommendations",),
    "inference.recommender": ("Recommender", "Recommender.recommend"),
    "models.baselines": ("Cooccurrence", "Popularity"),
    "models.decoder": ("DecoderRecommender",),
    "models.ensemble": ("Ensemble",),
    "models.folder": ("load_recommender", "save_recommender"),
    "models.item_tables": ("item_rows",),
    "models.sasrec": ("SasRec",),
    "pipeline.prepare": ("prepare",),
    "run": ("fit", "plan", "run", "write_report"),
    "run_folder": ("Run",),
    "studies.slices": ("slice_means", "slices_of"),
    "topk": ("best_columns", "top_k"),
    "training.full_softmax": ("CatalogueLoss", "catalogue_cross_entropy", "sampled_cross_entropy"),
    "training.divergences": ("catalogue_divergence", "cosine_loss", "norm_loss", "popularity_groups"),
    "training.losses": ("DistillationLoss", "NextItemLoss"),
    "training.trainer": ("fit",),
}
"""Classes and functions that people call from Python, by module."""


@pytest.fixture(scope="module")
def model_folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = SasRec(SasRecConfig(num_items=tiny_dataset.num_items, hidden_size=8, max_history_items=20))
    save_recommender(model, tiny_dataset, folder, "example", {})
    return folder


@pytest.fixture
def tiny_config(shop_file: Path) -> Config:
    """Settings of a run without a language model that takes a second."""
    size = {"hidden_size": 8, "num_hidden_layers": 1, "train": {"num_train_epochs": 1}}
    return Config.model_validate(
        {
            "prepare": {"input": str(shop_file)},
            "pretrain": {"sasrec": {**size, "max_history_items": 20}},
            "finetune": {"backbone": None, "item_vectors": None, "ensemble": ["sasrec"], "max_history_items": 20},
            "distill": {
                "student": {"kind": "sasrec", "hidden_size": 8},
                "weights": {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1},
                "train": {"num_train_epochs": 1},
            },
            "evaluate": {"protocols": ["full_history_excluded"], "timing_users": 20},
        }
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in EXTRAS else name for name in MODULES]
)
@pytest.mark.usefixtures("undrawn")
def test_examples_run(
    name: str, tiny_dataset: Dataset, model_folder: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """Examples may use some names of their own.

    These are `dataset`, a data set of 40 items, `data`, its folder, `folder`, the folder of a model of these items,
    `config`, settings of a small run, and `output`, a new folder.
    """
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    assert isinstance(tiny_dataset.items, Path)
    names = {
        "dataset": tiny_dataset,
        "data": tiny_dataset.items.parent,
        "folder": str(model_folder),
        "config": tiny_config,
        "output": tmp_path,
    }
    result = doctest.testmod(import_module(name), extraglobs=names)
    assert result.attempted > 0 and result.failed == 0


def imports_of(paths: Iterable[Path]) -> set[tuple[str, str]]:
    """Modules of slmrec and the names that files import from them."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    imported = re.findall(r"from (slmrec[\w.]*) import ([\w, ]+)", text)
    called = re.findall(r"`(slmrec\.[\w.]+)\.(\w+)\(", text)
    return {(module, name) for module, names in imported for name in names.split(", ")} | set(called)


def test_what_the_documents_name_has_an_example() -> None:
    named = imports_of([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    named |= {("slmrec", name) for name in slmrec.__all__ if name != "__version__"}
    with_example = {(f"slmrec.{module}", name) for module, names in CALLED.items() for name in names}
    with_example |= imports_of((ROOT / "examples").glob("*.py"))
    objects = [
        {getattr(import_module(module), name.split(".")[0]) for module, name in one} for one in (named, with_example)
    ]
    assert len(named) > 5 and objects[0] <= objects[1]


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in CALLED.items() for name in names])
def test_what_people_call_has_an_example(module: str, name: str) -> None:
    example = attrgetter(name)(import_module(f"slmrec.{module}"))
    assert ">>> " in (example.__doc__ or "")
