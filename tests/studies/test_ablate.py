"""`slmrec ablate`: one teacher for all cells, what is done is skipped, the report, and faults before anything runs."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from slmrec.commands.main import main
from slmrec.config import Config
from slmrec.config.load import load_config, vary
from slmrec.data.dataset import Dataset
from slmrec.errors import ConfigError
from slmrec.evaluation.metrics import user_metrics
from slmrec.evaluation.statistics import compare_means, holm
from slmrec.studies.ablate import default_variants

ROOT = Path(__file__).parents[2]
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "ce_alone": {f"distill.weights.{term}": 0 for term in ("cosine", "norm", "multiple", "kl")},
    "online": {"distill.mode": "online"},
}
SEEDS = (5, 6)
SHARED = ("prepare", "pretrain/popularity", "pretrain/cooccurrence", "pretrain/sasrec", "finetune")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = yaml.safe_load(tiny_recipe)
    content["finetune"]["backbone_config"]["hidden_size"] = 16
    content["distill"]["student"]["num_layers"] = content["distill"]["num_blocks"] = 4
    content["distill"]["train"] |= {"learning_rate": 1e-2, "warmup_steps": 0}
    content["evaluate"] = {"protocols": ["full_history_excluded"], "timing_users": 10}
    content["ablate"] = {"variants": VARIANTS, "seeds": list(SEEDS)}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ablation")
    assert main(["ablate", "--config", str(recipe), "--output", str(output)]) == 0
    return output


def values(finished: Path, variant: str, seed: int) -> np.ndarray[Any, Any]:
    table = pq.read_table(finished / variant / f"seed{seed}" / "evaluate" / "per_user_valid.parquet")
    assert set(table["model"].to_pylist()) == {"student"}
    return user_metrics(table["rank"].to_numpy())["ndcg@10"]


def test_the_report_is_that_of_the_ranks(finished: Path) -> None:
    found = json.loads((finished / "ablation.json").read_text(encoding="utf-8"))
    assert (found["baseline"], found["num_users"], found["protocol"]) == ("full", 80, "full_history_excluded")
    assert found["split"] == "valid"
    assert list(found["variants"]) == list(VARIANTS)  # the baseline first, though the recipe has it second
    means = {name: np.mean([values(finished, name, seed) for seed in SEEDS], axis=0) for name in VARIANTS}
    compared = {name: compare_means(means["full"], means[name]) for name in list(VARIANTS)[1:]}
    corrected = dict(zip(compared, holm([one.p_value for one in compared.values()]), strict=True))
    assert found["variants"]["full"]["difference"] is None
    for name, row in found["variants"].items():
        assert row["changes"] == VARIANTS[name]
        assert row["means"]["ndcg@10"] == pytest.approx(means[name].mean())
        assert list(row["by_seed"]["mrr"]) == [str(seed) for seed in SEEDS]
        for seed in SEEDS:
            assert row["by_seed"]["ndcg@10"][str(seed)] == values(finished, name, seed).mean()
    for name, one in compared.items():
        row = found["variants"][name]["difference"]
        assert (row["difference"], row["low"], row["high"]) == (one.difference, one.low, one.high)
        assert (row["p_value"], row["p_holm"]) == (one.p_value, corrected[name])
    text = (finished / "ablation.md").read_text(encoding="utf-8")
    assert "| variant | NDCG@10 | sd of seeds |" in text and f"| full | {means['full'].mean():.4f} |" in text
    assert "- `full`: the recipe as it is" in text and '- `online`: `distill.mode="online"`' in text
    assert (finished / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_all_cells_share_one_teacher_and_its_outputs(finished: Path) -> None:
    [states] = (finished / "base" / "teacher_outputs").iterdir()  # without blocks to compare, too
    assert states.suffix == ".safetensors"
    cells = [finished / name / f"seed{seed}" for name in VARIANTS for seed in SEEDS]
    for cell in cells:
        assert sorted(path.name for path in cell.iterdir()) == [
            "distill",
            "evaluate",
            "finetune",
            "prepare",
            "pretrain",
        ]
        for name in SHARED:
            assert (cell / name).is_symlink() and (cell / name).resolve() == (finished / "base" / name).resolve()
    students = [load_file(cell / "distill" / "model.safetensors") for cell in cells]
    first, *others = [student["item_embeddings.weight"] for student in students]
    assert all((first != other).any() for other in others)
    assert not list(finished.glob("*/seed*/evaluate/*users.parquet"))  # no test item was ranked


def test_users_beside_blocks_are_those_without(finished: Path, recipe: Path, tmp_path: Path) -> None:
    off = [f"{key}={value}" for key, value in VARIANTS["ce_alone"].items() if "kl" not in key]
    shared = [f"distill.teacher={finished / 'base' / 'finetune'}", "seed=5"]
    command = ["--config", str(recipe), "--output", str(tmp_path), *shared, *off]
    for stage in ("prepare", "distill"):
        assert main([stage, *command]) == 0
    alone = load_file(tmp_path / "distill" / "model.safetensors")
    shutil.rmtree(tmp_path / "teacher_outputs")
    (tmp_path / "teacher_outputs").symlink_to(finished / "base" / "teacher_outputs")
    assert main(["distill", *command, "--force"]) == 0
    beside = load_file(tmp_path / "distill" / "model.safetensors")
    assert all((alone[name] == beside[name]).all() for name in alone)
    assert len(list((finished / "base" / "teacher_outputs").iterdir())) == 1


def test_what_is_done_is_skipped_and_the_folder_may_move(
    finished: Path, recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    before = (finished / "ablation.json").read_bytes()
    moved = finished.rename(tmp_path / "moved")
    try:
        assert main(["ablate", "--config", str(recipe), "--output", str(moved)]) == 0
        said = caplog.text
        caplog.clear()
        assert said.count("nothing to do") == len(SHARED) + 2 * len(VARIANTS) * len(SEEDS) and ": done in" not in said
        assert (moved / "ablation.json").read_bytes() == before
        more = ["ablate.variants={full: {}, no_kl: {distill.weights.kl: 0}}", "ablate.seeds=[5]"]
        assert main(["ablate", "--config", str(recipe), "--output", str(moved), *more]) == 0
        said = caplog.text
        assert said.count("nothing to do") == len(SHARED) + 2
        assert "ablate: no_kl with seed 5 (2 of 2)" in said and said.count(": done in") == 2
        found = json.loads((moved / "ablation.json").read_text(encoding="utf-8"))
        assert list(found["variants"]) == ["full", "no_kl"]
        assert "| full | " in (moved / "ablation.md").read_text(encoding="utf-8")
    finally:
        moved.rename(finished)


def test_cells_can_be_compared_and_recommend(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [str(finished / name / "seed5") for name in ("full", "online")]
    assert main(["compare", *cells]) == 0
    assert "80 users, full_history_excluded; validation split" in capsys.readouterr().out


def test_the_test_split_is_used_on_request(finished: Path, recipe: Path, tmp_path: Path) -> None:
    output = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    changes = ["ablate.variants={full: {}}", "ablate.seeds=[5]", "--split", "test"]
    assert main(["ablate", "--config", str(recipe), "--output", str(output), *changes]) == 0
    content = json.loads((output / "ablation.json").read_text(encoding="utf-8"))
    evaluate = output / "full" / "seed5" / "evaluate"
    metrics = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
    own = metrics["protocols"]["full_history_excluded"]["models"]["student"]
    assert content["split"] == "test" and content["variants"]["full"]["means"]["ndcg@10"] == pytest.approx(
        own["ndcg@10"]
    )
    assert (evaluate / "per_user_valid.parquet").is_file()


def test_evaluation_tells_users_apart(finished: Path) -> None:
    dataset = Dataset.load(finished / "base" / "prepare")
    events = pq.read_table(finished / "base" / "prepare" / "interactions.parquet").to_pandas()
    table = pq.read_table(finished / "full" / "seed5" / "evaluate" / "users_valid.parquet").to_pandas()
    assert list(table.columns) == ["user_id", "history_length", "target_count"]
    ids = dict(enumerate(dataset.user_ids.to_pylist()))
    trained: dict[int, int] = {}
    for _, own in events.groupby("user"):
        for item in own["item"].tolist()[:-2]:
            trained[item] = trained.get(item, 0) + 1
    rows = table.set_index("user_id")
    for user, own in events.groupby("user"):
        row = rows.loc[ids[int(user) - events["user"].min()]]
        assert row["history_length"] == len(own) - 2
        assert row["target_count"] == trained.get(own["item"].tolist()[-2], 0)


def test_without_matplotlib_the_tables_are_all(
    finished: Path, recipe: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["ablate", "--config", str(recipe), "--output", str(finished)]) == 0
    assert "the plot needs matplotlib; pip install 'slmrec[plots]'" in caplog.text


def test_something_in_the_way_is_not_replaced(finished: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = finished / "full" / "seed7"
    (cell / "prepare").mkdir(parents=True)
    (cell / "prepare" / "thesis.txt").write_text("years", encoding="utf-8")
    assert main(["ablate", "--config", str(recipe), "--output", str(finished), "ablate.seeds=[7]"]) == 2
    assert f"{cell / 'prepare'} is in the way of a link to ../../base/prepare" in capsys.readouterr().err
    assert (cell / "prepare" / "thesis.txt").read_text(encoding="utf-8") == "years"


def variants_of(*overrides: str) -> dict[str, dict[str, Any]]:
    config = load_config(None, [*overrides])
    found = default_variants(config.distill)
    for name, changes in found.items():
        vary(config, changes, name)  # all of them are valid
    return found


def test_the_grid_fits_the_recipe() -> None:
    assert list(variants_of()) == ["full", "no_cosine", "no_norm", "no_multiple", "ce_alone", "online"]
    assert variants_of()["no_norm"] == {"distill.weights.norm": 0.0}
    only_kl = "distill.weights={cosine: 0, norm: 0, multiple: 0, kl: 1}"
    assert list(variants_of(only_kl, "distill.kl_temperature=2")) == ["full", "no_kl", "online"]
    own = variants_of("distill.weights.kl=1", "distill.kl_temperature=2")
    assert own["no_norm"] == {"distill.weights.norm": 0.0}
    assert own["no_kl"] == {"distill.weights.kl": 0.0, "distill.kl_temperature": 1.0}
    assert own["no_kl"].items() | own["no_norm"].items() <= own["ce_alone"].items()
    states = "distill.weights={cosine: 1, norm: 0, multiple: 0, kl: 1}"
    assert variants_of(states, "distill.num_blocks=2")["no_cosine"] == {
        "distill.weights.cosine": 0.0, "distill.num_blocks": 4
    }  # fmt: skip
    assert list(variants_of("distill.weights.ce=0")) == ["full", "no_cosine", "no_norm", "no_multiple", "online"]
    nothing_else = "distill.weights={ce: 0, cosine: 0, norm: 0, multiple: 0, kl: 1}"
    assert list(variants_of(nothing_else)) == ["full", "online"]
    assert list(variants_of("distill.mode=online"))[-1] == "offline"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ablate.variants={a: {}}", r"ablate: baseline is 'full', which is not a variant; choose from \['a'\]"),
        ("ablate.baseline=half", r"baseline is 'half', which is not a variant; choose from \['full'"),
        ("ablate.variants={full: {}, a/b: {}}", "variants has 'a/b': names are folders"),
        ("ablate.variants={full: {}, base: {}}", "variants has 'base'"),
        ("ablate.variants={full: {seed: 1}}", r"variants.full changes 'seed'; only settings of distill can differ"),
        ("ablate.seeds=[1, 2, 1]", r"seeds is \[1, 2, 1\]; name each seed once"),
        ("ablate.seeds=[]", "ablate.seeds is"),
        ("ablate.seed=[1]", r"unknown key 'ablate.seed' \(did you mean 'seeds'\?\)"),
        ("evaluate.models=[sutdent]", "evaluate.models has 'sutdent', which is not a model of the run"),
        ("evaluate.models=[]", "evaluate.models is"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(None, [override])


def test_faults_of_all_variants_are_told_before_anything_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = "ablate.variants={full: {}, odd: {distill.num_block: 2}, deep: {distill.num_blocks: 3}}"
    assert main(["ablate", "--config", str(recipe), "--output", str(tmp_path / "out"), variants]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "ablate.variants.odd: unknown key 'distill.num_block' (did you mean 'num_blocks'?)" in error
    assert "ablate.variants.deep: distill.num_blocks is 3, but the student has 4 layers" in error


def test_a_varied_recipe_keeps_the_rest() -> None:
    config = load_config(None, ["distill.weights.kl=0.5", "finetune.layers=[0, 1, 2, 3]", "distill.num_blocks=2"])
    varied = vary(config, {"distill.weights.cosine": 0.0, "distill.kl_temperature": 2.0}, "here")
    assert (varied.distill.weights.kl, varied.distill.weights.cosine) == (0.5, 0.0)
    assert varied.finetune == config.finetune and varied.prepare == config.prepare
    assert vary(Config(), {}, "here") == Config()
