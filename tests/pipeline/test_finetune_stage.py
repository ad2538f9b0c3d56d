"""`slmrec finetune`: item vectors, item texts, and the weights of base models in the teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import read_json, refused, weights
from safetensors.numpy import load_file

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.data.dataset import Dataset
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import load_recommender
from slmrec.models.sasrec import SasRec
from slmrec.models.text.item_text import TitleMap
from slmrec.pipeline.finetune import teacher_item_vectors

FIT_WEIGHTS = "slmrec.pipeline.ensemble_weights.fit_weights"
TEXT_MODEL = {
    "kind": "decoder",
    "item_dim": 16,
    "max_history_items": 20,
    "supervision": "every_position",
    "prompt": "none",
    "train": {"num_train_epochs": 1},
}


def test_a_teacher_with_item_texts_and_base_models_teaches_a_student(
    tmp_path: Path,
    config: Path,
    titled_items: Path,
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FIT_WEIGHTS, lambda *_: [0.5, 0.3, 0.2])
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["item_text"] = {"llm": {"source": "any", "num_components": 2}}
    content["pretrain"]["text"] = TEXT_MODEL
    content["finetune"] |= {"item_text": "llm", "item_text_width": 4, "ensemble": ["sasrec", "text"]}
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    common = ["--config", str(recipe), "--items", str(titled_items), "--output", str(output)]
    assert main(["run", *common]) == 0
    assert "texts read in" in messages.text
    assert "weights of the models, fitted on validation: decoder 0.5" in messages.text
    text, teacher, student = (load_recommender(output / step)[0] for step in ("pretrain/text", "finetune", "distill"))
    assert isinstance(teacher, Ensemble) and list(teacher.members) == ["decoder", "sasrec", "text"]
    metrics = read_json(output / "finetune" / "metrics.json")
    assert (metrics["weight/sasrec"], metrics["weight/text"]) == (0.3, 0.2)
    assert isinstance(student, DecoderRecommender) and student.titles is not None and student.titles.vectors.any()
    assert teacher.item_vectors().shape[1] == student.item_vectors().shape[1] + 16 + 16
    assert (teacher.members["text"].item_vectors() == text.item_vectors()).all()  # type: ignore[operator]
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert models["teacher"]["num_parameters"] == teacher.num_parameters()
    assert list(models) == ["popularity", "cooccurrence", "sasrec", "text", "teacher", "student"]
    written = load_config(output / "distill" / "config.yaml", [])
    assert written == load_config(recipe, [f"prepare.items={titled_items}"])
    messages.clear()
    assert main(["distill", *common, "distill.keep_ensemble=true"]) == 0
    assert "reading texts" not in messages.text and "distill: ensemble: valid NDCG@10" in messages.text
    student = load_recommender(output / "distill")[0]
    assert isinstance(student, Ensemble) and student.config.weights == teacher.config.weights
    assert student.num_layers < teacher.num_layers
    readers = [part.reader for part in student.modules() if isinstance(part, TitleMap)]
    assert [reader and (reader.settings.source, reader.axes.shape[1]) for reader in readers] == [("any", 2)]


def test_base_models_of_weight_0_are_left_out(
    output: Path,
    common: list[str],
    capsys: pytest.CaptureFixture[str],
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FIT_WEIGHTS, lambda *_: [1.0, 0.0])
    given = ["finetune.ensemble=[sasrec]"]
    assert main(["finetune", *common, *given]) == 0
    assert "fitted on validation: decoder 1" in messages.text
    assert isinstance(load_recommender(output / "finetune")[0], DecoderRecommender)
    error = refused(["distill", *common, *given, "distill.keep_ensemble=true"], capsys)
    assert f"distill.keep_ensemble is true, but the teacher in {output / 'finetune'} is not a mixture" in error
    assert "every other weight came out 0" in error and "set distill.keep_ensemble=false" in error


@pytest.mark.parametrize("supervision", ["every_position", "last_position"])
def test_a_teacher_without_decoder_is_the_mixture_of_base_models(
    supervision: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["pretrain"]["sasrec_2"] = {**content["pretrain"]["sasrec"], "seed": 7}
    kept = {key: content["finetune"][key] for key in ("max_history_items",)}
    content["finetune"] = {**kept, "backbone": None, "ensemble": ["sasrec", "sasrec_2"], "supervision": supervision}
    content["distill"]["student"] = {"kind": "sasrec", "hidden_size": 8}
    content["distill"]["weights"] = {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0, "kl": 1}
    del content["distill"]["num_blocks"]
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FIT_WEIGHTS, lambda *_: [0.5, 0.5])
        assert main(["run", "--config", str(recipe), "--output", str(output)]) == 0
    teacher, student = (load_recommender(output / step)[0] for step in ("finetune", "distill"))
    assert list(teacher.members) == ["sasrec", "sasrec_2"] and teacher.decoder_part is None
    assert isinstance(student, SasRec) and (student.hidden_size, student.max_history_items) == (8, 20)
    assert load_config(output / "evaluate" / "config.yaml", []) == load_config(recipe, [])
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert "ild@10" in models["student"]
    common = ["distill", "--config", str(recipe), "--output", str(output)]
    assert "set distill.keep_ensemble=false" in refused([*common, "distill.keep_ensemble=true"], capsys)
    assert "choose another kind, such as sasrec" in refused([*common, "distill.student={kind: decoder}"], capsys)


def test_item_texts_of_items_without_titles(
    output: Path, common: list[str], capsys: pytest.CaptureFixture[str], messages: pytest.LogCaptureFixture
) -> None:
    given = ["item_text.llm.source=smollm2-135m", "finetune.item_text=llm"]
    error = refused(["finetune", *common, *given], capsys)
    assert "finetune.item_text is 'llm', but the items have no titles; give a table of items with --items" in error
    assert main(["finetune", *common, *given, "item_text.llm.required=false"]) == 0
    assert "the items have no titles (--items FILE gives them); training without text" in messages.text
    assert load_recommender(output / "finetune")[0].titles is None


def test_item_vectors_of_a_file_need_no_base_model(config: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    content = yaml.safe_load(config.read_text(encoding="utf-8")) | {"pretrain": {}}
    content["finetune"] |= {"item_vectors": str(tmp_path / "vectors.npy"), "item_embeddings": "fixed"}
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["run", "--config", str(recipe), "--output", str(output)]) == 0
    metrics = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert list(metrics) == ["popularity", "cooccurrence", "teacher", "student"]
    assert np.allclose(weights(output / "finetune")["item_embeddings.weight"][1:], vectors)


@pytest.mark.parametrize(
    ("settings", "width"),
    [(["finetune.item_vectors=null", "finetune.item_dim=8"], 8), (["finetune.item_embeddings=reinitialise"], 16)],
)
def test_random_item_vectors(settings: list[str], width: int, output: Path, common: list[str]) -> None:
    untrained = ["finetune.train.num_train_epochs=0"]
    assert main(["finetune", *common, *settings, *untrained]) == 0
    vectors = weights(output / "finetune")["item_embeddings.weight"]
    assert vectors.shape == (41, width) and not vectors[0].any()
    assert vectors[1:].std() == pytest.approx(0.02, rel=0.2)
    base = weights(output / "pretrain" / "sasrec")["item_embeddings.weight"]
    assert base.shape != vectors.shape or not np.allclose(base, vectors)


def test_vectors_that_the_teacher_starts_from(finished: Path, config: Path) -> None:
    dataset = Dataset.load(finished / "prepare")
    base = load_file(finished / "pretrain" / "sasrec" / "model.safetensors")["item_embeddings.weight"]
    vectors = teacher_item_vectors(load_config(config, []), finished, dataset)
    assert torch.equal(vectors, torch.from_numpy(base))  # type: ignore[arg-type]
    elsewhere = load_config(config, ["pretrain={}", "distill.teacher=FOLDER"])
    assert teacher_item_vectors(elsewhere, finished, dataset) is None
