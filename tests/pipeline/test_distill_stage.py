"""`slmrec distill`: cached outputs of the teacher, modes, teachers of other folders, kinds of students."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from runs import read_json, refused, same_weights, weights

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.folder import load_recommender
from slmrec.models.sasrec import START_RMS, SasRec

KL_ONLY = "distill.weights={ce: 0.0, cosine: 0.0, norm: 0.0, multiple: 0.0, kl: 1.0}"
PROJECTED = ["distill.student={kind: sasrec, hidden_size: 8, num_attention_heads: 1, item_dim: 24, init: projected}"]
SASREC = ["distill.student={kind: sasrec, hidden_size: 8, num_attention_heads: 1}", KL_ONLY, "distill.num_blocks=4"]


def test_the_outputs_of_the_teacher_are_computed_once(
    finished: Path, output: Path, common: list[str], messages: pytest.LogCaptureFixture
) -> None:
    [file] = (output / "teacher_outputs").iterdir()
    before = file.stat().st_mtime_ns
    assert main(["distill", *common, "distill.weights={ce: 1.0, cosine: 0.5, norm: 0.1, kl: 0}"]) == 0
    assert f"teacher outputs taken from {file}" in messages.text
    other = ["distill.num_blocks=1", "distill.weights={cosine: 1.0, multiple: 0}", "distill.teacher_device_map=auto"]
    assert main(["distill", *common, *other]) == 0
    assert re.search(r"teacher outputs computed in \d+ s, cached in .*\.safetensors \(\d+\.\d MB\)", messages.text)
    assert len(list((output / "teacher_outputs").iterdir())) == 2
    assert file.stat().st_mtime_ns == before
    assert main(["distill", *common]) == 0
    assert same_weights(output / "distill", finished / "distill")


def test_a_damaged_file_of_teacher_outputs_is_one_line(
    output: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = (output / "teacher_outputs").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    error = refused(["distill", *common, "--force"], capsys)
    assert str(file) in error and "delete the file, and it will be computed again" in error


def test_online_distillation_trains_and_keeps_both(output: Path, common: list[str]) -> None:
    online = [*common, "distill.mode=online"]
    shutil.rmtree(output / "teacher_outputs")
    assert main(["distill", *online]) == 0
    assert not (output / "teacher_outputs").exists()
    assert not same_weights(output / "finetune", output / "distill" / "teacher")
    assert main(["evaluate", *online]) == 0


def test_a_teacher_of_another_folder(
    finished: Path, output: Path, common: list[str], messages: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(output / "finetune")
    assert main(["run", *common, f"distill.teacher={finished / 'finetune'}"]) == 0
    assert "finetune:" not in messages.text and not (output / "finetune").exists()
    cached = [[path.name for path in (run / "teacher_outputs").iterdir()] for run in (output, finished)]
    assert cached[0] == cached[1]  # a teacher is identified by its weights
    assert same_weights(output / "distill", finished / "distill")


def test_a_student_teaches_a_smaller_one(finished: Path, output: Path, common: list[str]) -> None:
    chain = [f"distill.teacher={finished / 'distill'}", "distill.student.num_layers=1", "distill.num_blocks=1"]
    chain += ["distill.weights.multiple=0"]
    assert main(["run", *common, *chain]) == 0
    metrics = read_json(output / "distill" / "metrics.json")
    assert (metrics["teacher_num_layers"], metrics["num_layers"]) == (2, 1)
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    first = read_json(finished / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert models["teacher"]["ndcg@10"] == first["student"]["ndcg@10"]


def test_a_sasrec_student_learns_from_the_scores_of_an_ensemble(
    output: Path, common: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slmrec.pipeline.ensemble_weights.fit_weights", lambda *_: [0.6, 0.4])
    ensemble = "finetune.ensemble=[sasrec]"
    assert main(["run", *common, *SASREC, ensemble]) == 0
    student, teacher = (load_recommender(output / step)[0] for step in ("distill", "finetune"))
    assert isinstance(student, SasRec) and list(teacher.members) == ["decoder", "sasrec"]
    assert (student.hidden_size, student.max_history_items) == (8, teacher.max_history_items)
    log = (output / "distill" / "training" / "log.jsonl").read_text(encoding="utf-8")
    divergences = [json.loads(line)["train/kl"] for line in log.splitlines()]
    assert divergences[-1] < divergences[0]
    error = refused(["distill", *common, *SASREC, ensemble, "distill.student.max_history_items=10"], capsys)
    assert "distill.student.max_history_items is 10, but the teacher reads 20 items" in error
    # A chain of other kinds: the SASRec student teaches a smaller one, and cannot teach a decoder.
    taught = shutil.copytree(output / "distill", output.parent / "teacher")
    chain = [*common, *SASREC, f"distill.teacher={taught}", "distill.student.hidden_size=4"]
    assert main(["distill", *chain]) == 0
    assert load_recommender(output / "distill")[0].hidden_size == 4
    decoder = [*common, f"distill.teacher={taught}", KL_ONLY, "distill.num_blocks=4"]
    assert "but the teacher has no decoder whose layers it could start from" in refused(["distill", *decoder], capsys)
    states = [*common, f"distill.teacher={taught}"]
    assert f"read hidden states, but the teacher in {taught} has no decoder" in refused(["distill", *states], capsys)
    online = [*chain, "distill.mode=online"]
    assert f"distill.mode is online, but the teacher in {taught} has no decoder" in refused(
        ["distill", *online], capsys
    )


def test_a_projected_student_starts_from_vectors_of_the_given_size(output: Path, common: list[str]) -> None:
    given = [*PROJECTED, KL_ONLY, "distill.num_blocks=4", "distill.train.num_train_epochs=0"]
    assert main(["distill", *common, *given]) == 0
    student, teacher = (load_recommender(output / step)[0] for step in ("distill", "finetune"))
    items = student.item_vectors()[1:]
    assert items.shape == (student.num_items, 24)
    assert items.square().mean().sqrt().item() == pytest.approx(START_RMS, rel=1e-3)
    rank = torch.linalg.matrix_rank(items)
    assert 0 < rank <= teacher.item_vectors().shape[1]


def test_a_student_learns_by_every_option(output: Path, common: list[str]) -> None:
    """Top-k, popularity groups and augmented histories: all terms are learned from, and no outputs are cached."""
    weights = "distill.weights={ce: 0.5, cosine: 0, norm: 0, multiple: 0, kl: 1, stratified_kl: 1}"
    given = [SASREC[0], weights, "distill.num_blocks=4", "distill.kl_top_k=5", "distill.num_popularity_groups=3"]
    given += ["distill.augment={share: 0.9}"]
    shutil.rmtree(output / "teacher_outputs")
    assert main(["distill", *common, *given]) == 0
    assert not (output / "teacher_outputs").exists()
    log = (output / "distill" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    parts = {name: value for name, value in json.loads(log[-1]).items() if name.startswith("train/")}
    assert parts.keys() == {"train/loss", "train/ce", "train/kl", "train/stratified_kl"} and min(parts.values()) > 0


def test_a_student_with_adapters_learns_at_the_blocks_of_its_teacher(
    output: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline and online; the heads of the teacher are kept beside it, and a student that lacks them is refused."""
    heads = ["finetune.weights.multiple=1", "finetune.num_blocks=2"]
    student = [*common, *heads, "distill.weights.block_kl=0.5", "distill.student.lora={r: 2}"]
    assert main(["finetune", *common, *heads]) == 0
    file = output / "finetune" / "block_heads.safetensors"
    logged = (output / "finetune" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(logged[-1])["train/multiple"] > 0
    for mode in ("offline", "online"):
        assert main(["distill", *student, f"distill.mode={mode}"]) == 0
        last = (output / "distill" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        assert json.loads(last)["train/block_kl"] > 0 and ("train/teacher_multiple" in last) == (mode == "online")
    metrics = read_json(output / "distill" / "metrics.json")
    assert 0 < metrics["num_trainable_parameters"] < metrics["num_parameters"] / 2
    assert (output / "distill" / "adapter_model.safetensors").is_file()
    assert main(["evaluate", *student, "distill.mode=online"]) == 0
    file.unlink()
    error = refused(["distill", *student, "--force"], capsys)
    assert f"{file} is missing, so the teacher has no heads at its blocks" in error


def test_a_student_learns_from_lists_of_a_teacher_outside(
    output: Path,
    common: list[str],
    tmp_path: Path,
    messages: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    users, items = (
        pq.read_table(output / "prepare" / f"{name}s.parquet")[f"{name}_id"].to_pylist() for name in ("user", "item")
    )
    lines = [f"{user},{item},{rank}" for user in users for rank, item in enumerate(items[:3], 1)]
    lists = tmp_path / "lists.csv"
    lists.write_text("\n".join(["user_id,item_id,rank", *lines, f"{users[0]},other,9"]), encoding="utf-8")
    weights = "distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0, lists: 1}"
    train = ["distill.train.learning_rate=1e-2", "distill.train.num_train_epochs=12"]
    given = [*common, SASREC[0], weights, "distill.num_blocks=4", *train]
    assert main(["distill", *given, f"distill.lists={lists}"]) == 0
    assert (
        f"lists of {len(users)} of {len(users)} users from {lists}; left out: 1 rows of unknown items" in messages.text
    )
    best = Recommender.from_pretrained(output / "distill").recommend([[items[9]]], 3).to_lists()[0]
    assert {item for item, _ in best} == set(items[:3])
    moved = lists.rename(tmp_path / "moved.csv")
    assert main(["distill", *given, f"distill.lists={moved}"]) == 0
    assert "distill: unchanged, nothing to do" in messages.text
    error = refused(["run", *given, f"distill.lists={lists}"], capsys)
    assert f"distill.lists is '{lists}': no such file; give a table with user_id, item_id and rank" in error
    assert "weights.lists is 1, but lists is null; name the file" in refused(["distill", *given], capsys).replace(
        "1.0", "1"
    )


def test_a_text_model_teaches_a_chain_of_students(shop_file: Path, tmp_path: Path) -> None:
    output, items = tmp_path / "run", tmp_path / "items.csv"
    titles = [f"i{item:02d},colour {item % 5} size {item // 5}" for item in range(40)]
    items.write_text("\n".join(["item_id,title", *titles]), encoding="utf-8")
    text = "pretrain.text={kind: text, hidden_size: 8, adaptor_size: 8, train: {num_train_epochs: 1}}"
    common = ["--config", "tiny", "--output", str(output), "item_text.words={}", "pretrain={}", text]
    common += [f"prepare.input={shop_file}", f"prepare.items={items}", "finetune.supervision=every_position"]
    common += [KL_ONLY, "distill.num_blocks=4", "distill.train.num_train_epochs=2"]
    first, teacher = [*common, *PROJECTED, f"distill.teacher={output / 'pretrain' / 'text'}"], tmp_path / "teacher"
    for stage in ("prepare", "pretrain", "distill"):
        assert main([stage, *first]) == 0
    shutil.copytree(output / "distill", teacher)
    assert main(["distill", *common, SASREC[0], "distill.augment={}", f"distill.teacher={teacher}"]) == 0
    chain = [load_recommender(folder)[0] for folder in (output / "pretrain" / "text", teacher, output / "distill")]
    assert [model.item_vectors().shape[1] for model in chain] == [8, 24, 8]
    assert chain[0].text_maps() and not chain[1].text_maps()


@pytest.mark.parametrize("layers", ["[1, 3]", "evenly_spaced", "influence"])
def test_a_student_of_chosen_layers(layers: str, output: Path, common: list[str]) -> None:
    given = [f"distill.student.layers={layers}", "distill.train.num_train_epochs=0"]
    assert main(["distill", *common, *given]) == 0
    student = load_recommender(output / "distill")[0]
    assert isinstance(student, DecoderRecommender) and student.num_layers == 2
    if layers == "[1, 3]":
        ours, theirs = weights(output / "distill"), weights(output / "finetune")
        name = "decoder.layers.{}.mlp.up_proj.weight"
        assert (ours[name.format(1)] == theirs[name.format(3)]).all()


def test_a_teacher_of_other_data_is_refused(
    finished: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"u{u} a{u % 5} b{u % 7} c{u % 3} d\n" for u in range(30)), encoding="utf-8")
    common = ["--config", str(config), "--output", str(tmp_path / "run"), f"prepare.input={other}"]
    assert main(["prepare", *common]) == 0
    error = refused(["distill", *common, f"distill.teacher={finished / 'finetune'}"], capsys)
    assert "trained on another data set" in error and "run finetune on it" in error
    assert not (tmp_path / "run" / "distill").exists()
