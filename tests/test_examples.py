"""The examples in docstrings run, and what people call from Python has one."""

import doctest
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import slmrec
from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig

SOURCE = Path(slmrec.__file__).parent
MODULES = sorted(
    ".".join(("slmrec", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
CALLED = {
    "config": ("Config",),
    "config.load": ("load_config", "vary"),
    "data.dataset": ("Dataset", "Samples"),
    "evaluation.candidates": ("draw_negatives",),
    "evaluation.diversity": ("coverage", "gini", "intra_list_distances", "list_metrics", "popularity_lift"),
    "evaluation.metrics": ("ranking_metrics", "ranks_of_targets", "user_metrics"),
    "evaluation.rank": ("EncoderScorer", "evaluate_scorer", "throughput"),
    "evaluation.statistics": ("bootstrap_interval", "compare_means", "compare_ratio", "holm", "sign_flip_test"),
    "inference.catalogue": ("Catalogue",),
    "inference.freeze": ("freeze",),
    "inference.ranking": ("Ranker",),
    "inference.recommendations": ("Recommendations",),
    "inference.recommender": ("Recommender", "Recommender.recommend"),
    "models.baselines": ("Cooccurrence", "Popularity"),
    "models.ensemble": ("Ensemble",),
    "models.folder": ("load_recommender", "save_recommender"),
    "models.sasrec": ("SasRec",),
    "pipeline.prepare": ("prepare",),
    "topk": ("best_columns", "top_k"),
    "training.full_softmax": ("CatalogueLoss", "catalogue_cross_entropy"),
    "training.divergences": ("catalogue_divergence", "popularity_groups"),
    "training.losses": ("DistillationLoss", "NextItemLoss"),
    "training.terms": ("cosine_loss", "norm_loss"),
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


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tiny_dataset: Dataset, model_folder: Path) -> None:
    """Examples may use `dataset`, a data set of 40 items, and `folder`, the folder of a model of these items."""
    result = doctest.testmod(import_module(name), extraglobs={"dataset": tiny_dataset, "folder": str(model_folder)})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in CALLED.items() for name in names])
def test_what_people_call_has_an_example(module: str, name: str) -> None:
    example = attrgetter(name)(import_module(f"slmrec.{module}"))
    assert ">>> " in (example.__doc__ or "")
