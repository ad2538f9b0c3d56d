"""`slmrec report` shows the numbers of the steps, and a notice for each part that is missing or broken."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markupsafe import escape
from reports import depth_study, rows_of, tables_of, write_run

from slmrec import report as package
from slmrec.commands.main import main
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.statistics import bootstrap_interval, compare_means, holm
from slmrec.pipeline.verdict import read_verdict
from slmrec.report.page import SECTIONS, report, show
from slmrec.report.parts import Chart, Grid, Notice, Section
from slmrec.report.pictures import drawn
from slmrec.report.quality import findings
from slmrec.report.states import open_run
from slmrec.studies.ablation import report as report_ablation
from slmrec.studies.evaluated import read_evaluated

LABELS = {"HR": "hit", "NDCG": "ndcg", "MRR": "mrr"}
STEP_OF = {"sasrec": "pretrain/sasrec", "teacher": "finetune", "student": "distill"}


@pytest.fixture(scope="module")
def finished(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report"), tiny_recipe)


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run without its report, to break."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report*", "depth")))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def sections_of(output: Path) -> dict[str, Section]:
    """The report, not yet drawn."""
    run = open_run(output)
    return {section.name: section for section in (make(run) for make in SECTIONS)}


def lacks(output: Path) -> dict[str, list[Notice]]:
    """What the report lacks, by section."""
    return {name: found for name, section in sections_of(output).items() if (found := section.notices())}


def grids_of(output: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of all tables and charts, by name."""
    blocks = [block for section in sections_of(output).values() for block in section.blocks]
    grids = [
        block.numbers if isinstance(block, Chart) else block for block in blocks if isinstance(block, Chart | Grid)
    ]
    return {
        grid.name: [dict(zip((column.name for column in grid.columns), row, strict=True)) for row in grid.rows]
        for grid in grids
    }


def key_of(label: str) -> str:
    for shown, key in LABELS.items():
        label = label.replace(shown, key)
    return label.replace("popularity lift", "popularity_lift")


def test_the_page_and_the_files_have_the_same_numbers(finished: Path) -> None:
    tables = tables_of(finished / "report.html")
    files = sorted((finished / "report").glob("*.csv"))
    assert {path.stem for path in files} == tables.keys() and len(files) > 15
    for path in files:
        rows = rows_of(path)
        assert [name.split(", ")[0] for name in rows[0]] == [name.split(", ")[0] for name in tables[path.stem][0]]
        for row, shown in zip(rows, tables[path.stem][1:], strict=True):
            assert [value or "–" for value in row.values()] == shown


def test_the_verdict_comes_first(finished: Path) -> None:
    page, verdict = (finished / "report.html").read_text(encoding="utf-8"), read(finished / "verdict.json")
    assert page.index(f"<h2>Ship {verdict['ship']}</h2>") < page.index('class="card finding"')
    for text in (*verdict["reasons"], *verdict["warnings"]):
        assert str(escape(text)) in page


def test_the_key_figures_are_those_of_the_model_to_ship(finished: Path) -> None:
    run, verdict = open_run(finished), read_verdict(finished)
    assert verdict is not None
    results = run.evaluation["protocols"]["full_history_excluded"]["models"]
    for ship, against, slower in (("sasrec", "popularity", "teacher"), ("teacher", "sasrec", "sasrec")):
        quality, hits, seconds, size = findings(run, verdict._replace(ship=ship, against=against))
        own, other, costly = results[ship], results[against], results[slower]
        assert (quality.title, quality.figure) == (f"NDCG@10 of {ship}", f"{own['ndcg@10']:.4f}")
        assert f"difference {own['ndcg@10'] - other['ndcg@10']:+.4f}" in quality.text and against in quality.text
        assert (hits.figure, hits.text) == (f"{own['hit@10']:.1%}", f"{against}: {other['hit@10']:.1%}")
        milliseconds = [1000 / model["users_per_second"] for model in (own, costly)]
        assert seconds.figure == f"{milliseconds[0]:.3g} ms" and f"{slower}: {milliseconds[1]:.3g} ms" in seconds.text
        assert (size.figure, size.text) == (f"{own['num_parameters']:,}", f"{slower}: {costly['num_parameters']:,}")
    assert next(iter(findings(run, None))).title == "NDCG@10 of student"
    assert findings(run, verdict._replace(ship="gone")) == []
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert f"NDCG@10 of {verdict.ship}<" in page


def test_all_metrics_are_those_of_evaluate(finished: Path) -> None:
    evaluated = read(finished / "evaluate" / "metrics.json")
    for protocol, found in evaluated["protocols"].items():
        rows = rows_of(finished / "report" / f"metrics-{protocol}.csv")
        assert [row["model"] for row in rows] == list(found["models"])
        for row in rows:
            own = found["models"][row.pop("model")]
            assert len(row) >= 8
            assert {key_of(name): float(value) for name, value in row.items()} == {
                key_of(name): own[key_of(name)] for name in row
            }


def test_intervals_and_differences_are_those_of_the_users(finished: Path) -> None:
    rows = {row.pop("model"): [*row.values()] for row in rows_of(finished / "report" / "models.csv")}
    own = {name: user_metrics(read_evaluated(finished, name, split="test").column("rank"))["ndcg@10"] for name in rows}
    compared = {name: compare_means(own[name], own["student"]) for name in rows if name != "student"}
    corrected = dict(zip(compared, holm([one.p_value for one in compared.values()]), strict=True))
    for name, row in rows.items():
        assert float(row[1]) == pytest.approx(own[name].mean())
        assert (float(row[2]), float(row[3])) == bootstrap_interval(own[name])
        if name == "student":
            assert row[5:] == [""] * 5
        else:
            one = compared[name]
            assert [float(row[place]) for place in (5, 6, 7, 9)] == [one.difference, one.low, one.high, corrected[name]]


def test_curves_are_those_of_the_logs(finished: Path) -> None:
    for stage in STEP_OF.values():
        log = (finished / stage / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        rows = rows_of(finished / "report" / f"training-{stage.replace('/', '-')}.csv")
        assert [{name: float(value) for name, value in row.items()} for row in rows] == [
            json.loads(line) for line in log
        ]
        assert float(rows[0]["valid/ndcg@10"]) > 0


def test_the_efficiency_table_is_that_of_the_stages(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["model"]: row for row in rows_of(finished / "report" / "efficiency.csv")}
    evaluated = read(finished / "evaluate" / "metrics.json")["protocols"]
    assert list(rows)[:5] == ["popularity", "cooccurrence", *STEP_OF]
    for model, stage in STEP_OF.items():
        row, metrics = rows[model], read(finished / stage / "metrics.json")
        log = (finished / stage / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert row["split"] == "test"
        assert float(row["parameters"]) == metrics["num_parameters"]
        assert float(row["trainable"]) == metrics["num_trainable_parameters"]
        assert float(row["training to best [s]"]) == json.loads(log[metrics["best_epoch"] - 1])["seconds"]
        assert float(row["peak memory [MB]"]) == metrics["peak_rss_mb"]
        assert float(row["weights on disk [MB]"]) == (finished / stage / "model.safetensors").stat().st_size / 1e6
        found = evaluated["full_history_excluded"]["models"][model]
        assert float(row["inference [s / 1,000 users]"]) == 1000 / found["users_per_second"]
        for protocol in ("sampled_19", "full_history_excluded"):
            for name in ("HR@1", "HR@5", "NDCG@5", "MRR"):
                assert float(row[f"{name}, {protocol}"]) == evaluated[protocol]["models"][model][key_of(name)]
    for point in depth_study()["trained"]:
        row = rows[f"depth {point['name']}"]
        assert (row["split"], int(row["parameters"])) == ("valid", point["num_parameters"])
        assert float(row["NDCG@5, full_history_excluded"]) == point["metrics"]["full_history_excluded"]["ndcg@5"]
        assert row["HR@1, sampled_19"] == ""
    show([sections_of(finished)["efficiency"]])
    text = capsys.readouterr().out
    assert "efficiency: cost" in text and "efficiency: quality, sampled_19" in text
    assert re.search(
        rf"│ student +│ test +│ +2 │ +{read(finished / 'distill' / 'metrics.json')['num_parameters']:,} │", text
    )


def test_the_depth_study_is_drawn(finished: Path) -> None:
    study, folder = depth_study(), finished / "report"
    curves = rows_of(folder / "depth-curves.csv")
    assert [(row["kind"], int(row["layers"])) for row in curves[:4]] == [
        *(("trained", 1), ("trained", 6), ("trained, other layers", 3), ("trained, other layers", 5))
    ]
    points = [point["metrics"]["full_history_excluded"]["ndcg@10"] for point in study["trained"] + study["early_exit"]]
    assert [float(row["NDCG@10"]) for row in curves] == points
    full = study["dropped"][0]["whole"]["full_history_excluded"]["ndcg@10"]
    for row, point in zip(rows_of(folder / "depth-dropped.csv"), study["dropped"], strict=True):
        value = point["metrics"]["full_history_excluded"]["ndcg@10"]
        assert (float(row["NDCG@10"]), float(row["difference"])) == (value, value - full)
    assert [float(row["cosine"]) for row in rows_of(folder / "depth-cosine.csv")] == study["similarity"]["cosine"]
    matrix = [[float(value) for value in list(row.values())[1:]] for row in rows_of(folder / "depth-cka.csv")]
    assert matrix == study["similarity"]["cka"]
    for name in ("depth-curves", "depth-dropped", "depth-cosine", "depth-cka", "latency", "training-distill"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert "1 of 6 layers lose no more than 1.0%" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_part_of_a_depth_study_is_enough(output: Path) -> None:
    (output / "depth").mkdir()
    study = depth_study() | {"trained": [], "similarity": {}, "recommended": None}
    del study["dropped"]
    (output / "depth" / "depth.json").write_text(json.dumps(study), encoding="utf-8")
    assert "depth" not in lacks(output)
    assert [name for name in grids_of(output) if name.startswith("depth")] == ["depth-curves"]
    (output / "depth" / "depth.json").write_text("{", encoding="utf-8")
    [notice] = lacks(output)["depth"]
    assert notice.fault == "broken" and "depth.json: is damaged" in notice.text


def test_missing_steps_are_named_with_their_command(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    for name in ("evaluate", "distill"):
        shutil.rmtree(output / name)
    show(list(sections_of(output).values()))
    assert caplog.text.count("report: missing: evaluate: not run; make it with: slmrec evaluate --config") == 1
    found = lacks(output)
    config = output / "finetune" / "config.yaml"
    for section, stages in {"models": ["evaluate"], "training": ["distill"], "run": ["distill", "evaluate"]}.items():
        assert [notice.text for notice in found[section]] == [f"{stage}: not run" for stage in stages]
        assert [notice.command for notice in found[section]] == [
            f"slmrec {stage} --config {config} --output {output}" for stage in stages
        ]
    rows = {row["model"]: row for row in grids_of(output)["efficiency"]}
    assert (
        list(rows) == ["popularity", "cooccurrence", "sasrec", "teacher"]
        and rows["teacher"]["inference [s / 1,000 users]"] is None
    )
    assert "training-finetune" in grids_of(output)
    assert main(found["training"][0].command.split()[1:]) == 0  # the command makes the stage
    assert [notice.text for notice in lacks(output)["run"]] == ["evaluate: not run"]


def test_an_interrupted_training_is_drawn_as_far_as_it_came(output: Path) -> None:
    shutil.rmtree(output / "evaluate")
    (output / "distill").rename(output / ".distill.partial")
    for name in ("metrics.json", "model.safetensors"):
        (output / ".distill.partial" / name).unlink()
    found = lacks(output)
    assert found["training"] == found["run"][:1]
    assert found["training"][0].fault == "interrupted" and "2 epochs are done" in found["training"][0].text
    assert len(grids_of(output)["training-distill"]) == 2
    log = output / ".distill.partial" / "training" / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert "line 2 is damaged" in lacks(output)["training"][1].text


def test_a_broken_stage_says_why_and_takes_nothing_else_with_it(output: Path) -> None:
    (output / "finetune" / "metrics.json").write_text("[1, 2", encoding="utf-8")
    weights = output / "distill" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    found = lacks(output)
    assert [notice.fault for notice in found["run"]] == ["broken", "broken"]
    assert "metrics.json: is damaged" in found["run"][0].text and found["run"][0].command.endswith(" --force")
    assert "model.safetensors" in found["run"][1].text and "checksum" in found["run"][1].text
    assert any("student: " in notice.text for notice in found["examples"])
    assert {"models", "data", "slices"}.isdisjoint(found)
    rows = {row["model"]: row for row in grids_of(output)["efficiency"]}
    assert rows["student"]["parameters"] and not rows["teacher"]["peak memory [MB]"]


def test_steps_of_an_earlier_version_are_named(output: Path) -> None:
    record = read(output / "finetune" / "stage.json")
    old = record | {"version": "0.1.0"}
    (output / "finetune" / "stage.json").write_text(json.dumps(old), encoding="utf-8")
    [notice] = lacks(output)["training"]
    assert (notice.fault, notice.text) == ("out of date", "finetune: made by an earlier version (0.1.0)")
    shutil.rmtree(output / "pretrain")
    (output / "pretrain").mkdir()
    (output / "pretrain" / "stage.json").write_text(json.dumps(old), encoding="utf-8")
    texts = [notice.text for notice in lacks(output)["run"]]
    assert "pretrain/sasrec: made by an earlier version (0.1.0)" in texts


def test_studies_that_were_not_run_are_no_faults(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    show(list(sections_of(output).values()))
    assert "ablat" not in caplog.text and "depth" not in caplog.text
    shutil.rmtree(output / "distill")
    show(list(sections_of(output).values()))
    assert "report: missing: distill: not run; make it with: slmrec distill" in caplog.text


def test_a_run_that_was_evaluated_on_validation_alone_says_so(output: Path) -> None:
    for name in ("metrics.json", "per_user.parquet", "users.parquet"):
        (output / "evaluate" / name).unlink()
    config = output / "evaluate" / "config.yaml"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["evaluate"]["splits"] = ["valid"]
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert {name: [notice.fault for notice in found] for name, found in lacks(output).items()} == {
        "depth": ["optional"],
        "ablation": ["optional"],
    }
    assert "Results on the validation split" in sections_of(output)["models"].lead
    assert {row["split"] for row in grids_of(output)["efficiency"]} == {"valid"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{}", "has no protocols"), ('{"primary": "full", "protocols": [1]}', "TypeError"), ("nothing", "is damaged")],
)
def test_a_broken_evaluation_says_why(output: Path, content: str, reason: str) -> None:
    (output / "evaluate" / "metrics.json").write_text(content, encoding="utf-8")
    found = lacks(output)
    assert any(reason in notice.text for notice in found["models"])
    assert "training-distill" in grids_of(output)


def test_a_stage_of_an_earlier_one_is_out_of_date(output: Path) -> None:
    record = read(output / "finetune" / "stage.json")
    (output / "finetune" / "stage.json").write_text(json.dumps(record | {"fingerprint": "other"}), encoding="utf-8")
    found = lacks(output)
    assert [(notice.fault, notice.text) for notice in found["run"]] == [
        ("out of date", f"{stage}: made from an earlier finetune") for stage in ("distill", "evaluate")
    ]
    assert "models" in grids_of(output)


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_not_reported_again_without_need(
    finished: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    command = ["run", "--config", str(finished.parent / "recipe.yaml"), "--output", str(output)]
    assert main(command) == 0
    before = (output / "report.html").stat().st_mtime_ns
    assert main(command) == 0
    assert (output / "report.html").stat().st_mtime_ns == before
    assert "report: unchanged, nothing to do" in caplog.text


def test_without_the_libraries_one_line_says_what_to_install(
    finished: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "matplotlib, jinja2" in error and "pip install 'slmrec[plots]'" in error
    assert main(["run", "--config", str(finished.parent / "recipe.yaml"), "--output", str(output)]) == 0
    assert f"pip install 'slmrec[plots]', then `slmrec report {output}`" in caplog.text
    assert not (output / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_wrong_places_are_refused(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work", encoding="utf-8")
    for arguments, expected in (
        ([str(notes)], f"{notes}: no run"),
        (
            [str(output), "--output", str(tmp_path / "page.pdf")],
            "page.pdf: the report is an HTML page; give --output NAME.html",
        ),
        ([str(output), "--output", f"{notes}.html"], f"{notes} exists and does not belong to a report"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and expected in error
    assert (notes / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert main(["report", str(output), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page" / "models.csv").is_file() and not (output / "report").exists()


def test_an_ablation_is_drawn(finished: Path, output: Path) -> None:
    student, teacher = (read_evaluated(finished, name) for name in ("student", "teacher"))
    cells = {"full": {5: student}, "no_kl": {5: teacher}}
    report_ablation(output, {"full": {}, "no_kl": {"distill.weights.kl": 0.0}}, cells, "full")
    rows = grids_of(output)["ablation"]
    found = read(output / "ablation.json")["variants"]
    for row in rows:
        own = found[row["variant"]]
        assert row["NDCG@10, seed 5"] == own["by_seed"]["ndcg@10"]["5"]
        assert row["MRR"] == own["means"]["mrr"]
        told = own["difference"] or dict.fromkeys(("difference", "low", "high", "p_holm"))
        assert [row["difference"], row["from"], row["to"], row["p (Holm)"]] == [
            told[name] for name in ("difference", "low", "high", "p_holm")
        ]
    (output / "ablation.json").write_text('{"variants": {}}', encoding="utf-8")
    [notice] = lacks(output)["ablation"]
    assert notice.fault == "broken" and "ablation.json" in notice.text


def test_the_folder_of_an_ablation_shows_its_baseline(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ablation"
    cell = Path(shutil.copytree(output, folder / "full" / "seed5"))
    (folder / "base").mkdir()
    shutil.move(cell / "prepare", folder / "base" / "prepare")
    (cell / "prepare").symlink_to(Path("..", "..", "base", "prepare"))
    one = {"full": {5: read_evaluated(cell, "student")}}
    report_ablation(folder, {"full": {}}, one, "full")
    assert set(lacks(folder)) == {"depth"}
    [note] = [block.note for block in sections_of(folder)["ablation"].blocks if isinstance(block, Grid)]
    assert "validation split" in note
    assert len(grids_of(folder)["models"]) == 5
    (folder / "ablation.json").unlink()
    found = lacks(folder)
    assert found["ablation"][0].command.endswith(f"--output {folder}")
    assert {notice.text for notice in found["models"]} == {"evaluate: not run"}


def test_every_axis_says_what_it_shows(finished: Path) -> None:
    charts = [
        block for section in sections_of(finished).values() for block in section.blocks if isinstance(block, Chart)
    ]
    assert len(charts) == 13
    for chart in charts:
        with drawn(chart) as figure:
            *_, lowest = own = figure.axes[: len(chart.axes)]
            assert lowest.get_xlabel()
            for axes in own:
                names = [label.get_text() for label in axes.get_yticklabels()]
                assert axes.get_ylabel() or set(names) <= {"popularity", "cooccurrence", "sasrec", "teacher", "student"}


def test_example_users_are_named_by_numbers(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<summary>User (.*)</summary>", page) == ["1", "2", "3", "4", "5"]
    assert not re.search(r"\bu\d\d\b", page)


def test_examples_stop_before_the_validation_item(finished: Path, tmp_path: Path, undrawn: None) -> None:
    page = report(finished, tmp_path / "ids.html", show_user_ids=True).read_text(encoding="utf-8")
    examples = re.findall(r'<details class="card example".*?</details>', page, re.DOTALL)
    assert len(examples) == 5
    for example in examples:
        user = int(re.search(r"User u(\d+)", example)[1])  # type: ignore[index]
        walk = [f"item i{(7 * user + step * (1 + user % 3)) % 40:02d}" for step in range(5 + user % 9)]
        history, *lists = [
            re.findall(r'title="([^"]*)"', part) for part in re.findall("<ol>.*?</ol>", example, re.DOTALL)
        ]
        assert history == walk[:-2][-8:]
        assert f'<span class="next">{walk[-2]}</span>' in example
        assert len(lists) == 3 and all(len(set(items)) == 10 for items in lists)
        marked = re.findall(r'<li class="next" title="([^"]*)"', example)
        assert marked == [walk[-2]] * sum(walk[-2] in items for items in lists)
