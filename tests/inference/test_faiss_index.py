"""An approximate index: what it finds is scored and filtered as by exact search."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from artefacts import MODELS, NUM_ITEMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.commands.main import main
from slmrec.data.dataset import Dataset
from slmrec.errors import CheckpointError, ConfigError
from slmrec.inference.faiss_index import ItemIndex
from slmrec.models.folder import save_recommender
from slmrec.topk import top_k
from slmrec.types import ItemBonus

pytestmark = pytest.mark.heavy

ITEMS = [f"i{n:02d}" for n in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def many() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """5,000 items around 50 centres, of which the even ones may be recommended, and 200 users near their centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 16, generator=generator) * 2
    items = centres[torch.arange(5001) % 50] + torch.randn(5001, 16, generator=generator)
    users = centres[torch.arange(200) // 2 * 2 % 50] + torch.randn(200, 16, generator=generator)
    return items, torch.arange(5001) % 2 == 0, users


@pytest.fixture(scope="module")
def index(many: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> ItemIndex:
    items, allowed, users = many
    allowed = allowed & (torch.arange(5001) > 0)
    return ItemIndex.build(items, allowed, users, 0.9, "")


def test_a_part_of_the_catalogue_gives_the_recall(
    index: ItemIndex, many: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    items, allowed, users = many
    assert index.facts.num_probed < index.facts.num_lists / 2
    exact = top_k(users[1::2], items, 10, allowed=allowed & (torch.arange(5001) > 0))[1]
    found = index.top_k(users[1::2], items, 10)[1]
    shares = [len({*ours} & {*theirs}) / 10 for ours, theirs in zip(found.tolist(), exact.tolist(), strict=True)]
    assert sum(shares) / len(shares) == pytest.approx(index.facts.recall, abs=1e-6)
    assert 0.8 < index.facts.recall < 1


@given(st.integers(1, 30), st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.integers(0, 199))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_it_gives_is_sound(
    index: ItemIndex,
    many: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    k: int,
    seen: list[int],
    user: int,
) -> None:
    items, _, users = many
    best_of_all = top_k(users[user, None], items, 20)[1][0].tolist()
    excluded = torch.tensor([seen + best_of_all])
    scores, best = index.top_k(users[user, None], items, k, excluded=excluded)
    found = best[0].tolist()
    assert len(set(found)) == k and not {*found} & {*seen, *best_of_all} and all(item % 2 == 0 for item in found)
    torch.testing.assert_close(scores[0], items[best[0]] @ users[user])
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)


def test_where_too_few_are_found_search_is_exact(
    index: ItemIndex, many: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    items, allowed, users = many
    few = (torch.arange(5001) > 4990) & allowed
    scores, best = index.top_k(users[:3], items, 9, allowed=few)
    expected = top_k(users[:3], items, 9, allowed=few)
    assert torch.equal(best, expected[1]) and torch.equal(scores, expected[0])


def test_a_bonus_competes_although_the_index_does_not_know_it(
    many: tuple[torch.Tensor, torch.Tensor, torch.Tensor], index: ItemIndex
) -> None:
    items, allowed, queries = many
    lowest = (queries[:4] @ items.T).masked_fill(~allowed, torch.inf).argmin(dim=1)
    best = top_k(queries[:4], items, 1, allowed=allowed)[1][:, 0]
    bonus = ItemBonus(torch.stack([lowest, best, 0 * best], dim=1), torch.tensor([[500.0, -500.0, 9.0]] * 4))
    expected = top_k(queries[:4], items, 1, allowed=allowed, bonus=bonus)[1]
    found = index.top_k(queries[:4], items, 5, allowed=allowed, bonus=bonus)[1]
    assert found[:, 0].equal(lowest) and expected[:, 0].equal(lowest)
    assert not (found == best[:, None]).any() and all(len(set(row)) == 5 for row in found.tolist())


@pytest.fixture(scope="module")
def folder(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_recommender(MODELS["titles"](), tiny_dataset, path, "tiny", {})
    return path


def test_a_recommender_with_an_index_of_all_lists_answers_as_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(folder), "--output", str(tmp_path / "items.faiss"), "--recall", "1"]
    assert main(["export", "--format", "faiss", *options]) == 0
    assert "recall@10 1.000 against exact search, 1 of 1 lists" in capsys.readouterr().out
    exact = Recommender.from_pretrained(folder)
    indexed = Recommender.from_pretrained(folder, index=tmp_path / "items.faiss")
    histories = [["i01", "i02"], [], ["i03"] * 9, ITEMS]
    for options_of in ({"k": 7}, {"k": 99}, {"k": 5, "filter_seen": False}, {"k": 5, "candidates": ["i09", "i10"]}):
        ours, theirs = (one.recommend(histories, **options_of).table for one in (indexed, exact))  # type: ignore[arg-type]
        assert ours.select(["user_id", "item_id", "rank"]).equals(theirs.select(["user_id", "item_id", "rank"]))
        assert ours["score"].to_pylist() == pytest.approx(theirs["score"].to_pylist(), abs=1e-5)


def test_the_command_searches_in_an_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.faiss"
    assert main(["export", "--format", "faiss", "--model", str(folder), "--output", str(file)]) == 0
    (tmp_path / "in.txt").write_text("a i01 i02\nb i05\n", encoding="utf-8")
    asked = ["recommend", "--model", str(folder), "--index", str(file), "--k", "3"]
    searched, search = [], ItemIndex.top_k
    monkeypatch.setattr(ItemIndex, "top_k", lambda *given, **named: searched.append(1) or search(*given, **named))
    assert main([*asked, "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.parquet")]) == 0
    assert main([*asked, "--history", "i01,i02"]) == 0
    assert len(searched) == 2
    expected = Recommender.from_pretrained(folder, index=file).recommend([["i01", "i02"], ["i05"]], 3)
    assert pq.read_table(tmp_path / "out.parquet")["item_id"].equals(expected.table["item_id"])
    with pytest.raises(SystemExit, match="2"):
        main([*asked, "--input", "in", "--output", "out", "--engine", "spark"])
    assert "--index does not apply to --engine spark, whose search is exact; leave it out" in capsys.readouterr().err


def test_indices_of_other_items_and_damaged_ones_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "items.faiss"
    assert main(["export", "--format", "faiss", "--model", str(folder), "--output", str(file)]) == 0
    (tmp_path / "gone.csv").write_text("item_id\ni03\n", encoding="utf-8")
    where = ["--model", str(folder), "--items", str(tmp_path / "gone.csv"), "--output", str(tmp_path / "fewer")]
    assert main(["items", "remove", *where]) == 0
    with pytest.raises(CheckpointError, match=r"items.faiss: the index holds other items than the model folder"):
        Recommender.from_pretrained(tmp_path / "fewer", index=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="the index cannot be read"):
        Recommender.from_pretrained(folder, index=file)
    with pytest.raises(CheckpointError, match="the index cannot be read"):
        Recommender.from_pretrained(folder, index=tmp_path / "none.faiss")
    with pytest.raises(ConfigError, match=r"--recall is 1.5, expected a share"):
        ItemIndex.build(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool), torch.zeros(2, 2), 1.5, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs faiss, not installed here; run: pip install 'slmrec\[faiss\]'"):
        Recommender.from_pretrained(folder, index=file)
