"""`slmrec run` and the commands of the stages: files, options, settings that several stages share."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from runs import STEPS, TRAINED, read_json, refused, same_weights, weights

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.errors import ConfigError
from slmrec.models.folder import load_recommender
from slmrec.pipeline.run import run_stage


def test_stages_write_their_files(finished: Path) -> None:
    for step in STEPS[:-1]:
        metrics = read_json(finished / step / "metrics.json")
        assert all(isinstance(value, int | float) for value in metrics.values())
        assert metrics["wall_s"] > 0 and metrics["peak_rss_mb"] > 10
    for step in TRAINED:
        expected = {"valid/ndcg@10", "valid/hit@10", "valid/mrr", "num_parameters", "num_trainable_parameters"}
        assert expected <= set(read_json(finished / step / "metrics.json"))
        assert Recommender.from_pretrained(finished / step).recommend([["i01", "i02"]], k=3).table.num_rows == 3
        assert (finished / step / "training" / "log.jsonl").is_file()
        assert not list((finished / step / "training").glob("*.safetensors"))
    for name in ("popularity", "cooccurrence"):
        assert load_recommender(finished / "pretrain" / name)[0].num_items == 40
    tables = {
        name: pq.read_table(finished / "prepare" / f"{name}.parquet") for name in ("interactions", "items", "users")
    }
    assert tables["interactions"].column_names == ["user", "item", "timestamp", "position"]
    assert tables["items"].column_names == ["item", "item_id"]
    assert tables["users"].column_names == ["user", "user_id"]


def test_every_config_file_of_a_run_can_be_read_again(finished: Path, config: Path) -> None:
    files = sorted(finished.rglob("config.yaml"))
    assert len(files) == len(STEPS)
    assert all(load_config(file, []) == load_config(config, []) for file in files)


def test_a_recipe_is_found_by_its_name(shop_file: Path, tmp_path: Path) -> None:
    command = ["prepare", "--config", "tiny", "--input", str(shop_file), "--output", str(tmp_path / "run")]
    assert main(command) == 0
    expected = load_config("tiny", [f"prepare.input={shop_file}"])
    assert load_config(tmp_path / "run" / "prepare" / "config.yaml", []) == expected


def test_batches_that_fit_are_recorded(common: list[str], output: Path, finished: Path) -> None:
    auto = [
        f"{stage}.train.{key}"
        for stage in ("finetune", "distill")
        for key in ("per_device_train_batch_size=auto", "reference_batch_size=32")
    ]
    for stage in ("finetune", "distill"):
        assert main([stage, *common, *auto]) == 0
        metrics = read_json(output / stage / "metrics.json")
        sizes = ("samples_at_once", "samples_per_step", "peak_learning_rate")
        assert [metrics[name] for name in sizes] == [32, 32, 2e-3]
        assert same_weights(output / stage, finished / stage)


def test_sampled_softmax_and_gradient_checkpointing_train(common: list[str], output: Path, finished: Path) -> None:
    sampled = [
        f"{section}.train.{key}"
        for section in ("pretrain.sasrec", "finetune", "distill")
        for key in ("loss=sampled_softmax", "num_sampled=8")
    ]
    checkpointing = [f"{stage}.train.gradient_checkpointing=true" for stage in ("finetune", "distill")]
    for stage in ("finetune", "distill"):
        assert main([stage, *common, *checkpointing]) == 0
        ours, theirs = weights(output / stage), weights(finished / stage)
        assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)  # it saves memory only
    assert [main([stage, *common, *sampled]) for stage in ("pretrain", "finetune", "distill")] == [0, 0, 0]
    assert not same_weights(output / "pretrain" / "sasrec", finished / "pretrain" / "sasrec")


SEEDS = """
sasrec_1: &small {hidden_size: 8, max_history_items: 20, train: {num_train_epochs: 1}}
sasrec_2: {<<: *small, seed: 7}
"""


def test_several_seeds_of_one_kind_are_several_names(
    config: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    content = yaml.safe_load(config.read_text(encoding="utf-8")) | {"pretrain": yaml.safe_load(SEEDS)}
    content["finetune"] |= {"item_vectors": "sasrec_2", "ensemble": ["sasrec_1", "sasrec_2"]}
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["run", "--config", str(recipe), "--output", str(output)]) == 0
    models = read_json(output / "evaluate" / "metrics.json")["protocols"]["full"]["models"]
    assert list(models) == ["popularity", "cooccurrence", "sasrec_1", "sasrec_2", "teacher", "student"]
    assert not same_weights(output / "pretrain" / "sasrec_1", output / "pretrain" / "sasrec_2")
    assert load_config(output / "evaluate" / "config.yaml", []) == load_config(recipe, [])
    messages.clear()
    changed = ["pretrain.sasrec_1.hidden_size=4", "finetune.ensemble=[sasrec_2]"]
    assert main(["pretrain", "--config", str(recipe), "--output", str(output), *changed]) == 0
    assert messages.text.count("unchanged, nothing to do") == 3  # the baselines and the other seed
    assert "pretrain/sasrec_1: done in" in messages.text


def test_one_base_model_can_be_trained_alone(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", str(config), "--output", str(tmp_path)]
    assert main(["prepare", *common]) == 0
    assert main(["pretrain", *common, "--model", "sasrec"]) == 0
    assert [folder.name for folder in (tmp_path / "pretrain").iterdir()] == ["sasrec"]
    error = refused(["pretrain", *common, "--model", "companion"], capsys)
    assert "--model is 'companion', which pretrain does not train" in error
    assert "choose from popularity, cooccurrence, sasrec" in error
    with pytest.raises(ConfigError, match="choose from no model"):
        run_stage("prepare", load_config(config, []), tmp_path, model="sasrec")


@pytest.mark.parametrize("section", ["finetune", "pretrain.text"])
def test_language_models_are_checked_before_the_first_stage(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], section: str
) -> None:
    given = ["item_text.llm.source=no-such-model.gguf", f"{section}.item_text=llm"]
    if section == "pretrain.text":
        given += ["pretrain.text.kind=decoder"]
    error = refused(["run", "--config", str(config), "--output", str(tmp_path / "run"), *given], capsys)
    assert "no-such-model.gguf" in error
    assert not (tmp_path / "run").exists()


def test_the_input_may_have_any_name(shop_file: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copy(shop_file, tmp_path / "a #b: [c].txt"))
    assert main(["prepare", "--input", str(odd), "--output", str(tmp_path / "data")]) == 0


def test_prepare_without_a_recipe_writes_the_data_set_itself(shop_file: Path, tmp_path: Path) -> None:
    assert main(["prepare", "--input", str(shop_file), "--output", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "interactions.parquet").is_file()


def test_an_unknown_option_shows_how_its_command_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--output", "out", "--outptu"])
    error = capsys.readouterr().err
    assert error.startswith("usage: slmrec run ") and "slmrec run: error: unrecognized arguments: --outptu" in error


def test_help_has_an_example_and_names_what_explains_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "prepare"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"Example: slmrec {command} --config words --input LOG --items ITEMS" in text
        assert "words if its items have titles, sequences if not" in text
        assert "`slmrec config schema` explains all settings. Without --config" in text


def test_a_log_without_titles_is_refused_before_any_training(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["run", "--config", "words", "--input", str(shop_file), "--output", str(tmp_path / "run")], capsys)
    assert "pretrain.text.item_text is 'words', but the items have no titles; give a table of items" in error
    assert "take a recipe without text, such as --config sequences" in error
    assert (tmp_path / "run" / "prepare").exists() and not (tmp_path / "run" / "pretrain").exists()


def test_recommend_from_the_command_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "histories.jsonl").write_text('{"user_id": "a", "history": ["i01", "i02"]}\n', encoding="utf-8")
    arguments = ["--model", str(finished / "distill"), "--input", str(tmp_path / "histories.jsonl"), "--k", "4"]
    assert main(["recommend", *arguments, "--output", str(tmp_path / "out.parquet")]) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["user_id", "item_id", "score", "rank"]
    assert table["rank"].to_pylist() == [1, 2, 3, 4]
    assert not {"i01", "i02"} & set(table["item_id"].to_pylist())
