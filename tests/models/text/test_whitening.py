"""Whitening of text vectors: equal scales of all dimensions, without the directions that have no variance."""

import pytest
import torch

from slmrec.config import ItemTextConfig
from slmrec.models.text.item_text import TextReader
from slmrec.models.text.whitening import whitened

HALF_WAY = {"whitening": "pca", "power": 0.5, "eps": 0, "num_components": 4}


def vectors() -> torch.Tensor:
    torch.manual_seed(0)
    found = torch.randn(60, 6) @ torch.diag(torch.tensor([9.0, 5.0, 3.0, 1.0, 0.1, 0.01])) + 4
    found[[0, 7]] = 0
    return found


def known(values: torch.Tensor) -> torch.Tensor:
    return values[vectors().any(dim=1)]


def test_components_half_way_to_equal_scales() -> None:
    result = whitened(vectors(), ItemTextConfig(**HALF_WAY)).vectors
    assert not result[[0, 7]].any()
    spread = torch.cov(known(result).T)
    torch.testing.assert_close(spread, torch.diag(spread.diagonal()), rtol=0, atol=1e-3)  # uncorrelated
    assert known(result).square().mean().item() == pytest.approx(1, abs=1e-4)
    principal = torch.linalg.svdvals((known(vectors()) - known(vectors()).mean(dim=0)).double())[:4].sqrt()
    torch.testing.assert_close(spread.diagonal().sqrt() / spread[0, 0].sqrt(), (principal / principal[0]).float())


def version_0_1(values: torch.Tensor, num_components: int) -> torch.Tensor:
    """Whitening of the earlier version, whose vectors the recipes keep."""
    centred = known(values).double()
    centred = centred - centred.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    order = variances.argsort(descending=True)[:num_components]
    scales = variances[order].clamp(min=variances.max() * 1e-9 + 1e-12).sqrt()
    components = centred @ axes[:, order] / scales.sqrt()
    result = torch.zeros(len(values), num_components)
    result[values.any(dim=1)] = (components / components.square().mean().sqrt()).float()
    return result


def test_the_settings_of_the_recipes_keep_their_vectors() -> None:
    result = whitened(vectors(), ItemTextConfig(**HALF_WAY)).vectors
    assert torch.equal(result, version_0_1(vectors(), 4))


@pytest.mark.parametrize("whitening", ["zca", "pca"])
def test_full_whitening_leaves_no_correlation(whitening: str) -> None:
    result = known(whitened(vectors(), ItemTextConfig(whitening=whitening, eps=0)).vectors)
    torch.testing.assert_close(torch.cov(result.T, correction=0), torch.eye(6), rtol=0, atol=1e-3)


def test_zca_stays_close_to_the_given_dimensions() -> None:
    given = known(vectors())
    result = known(whitened(vectors(), ItemTextConfig(eps=0)).vectors)
    for dimension in range(6):
        correlation = torch.corrcoef(torch.stack([given[:, dimension], result[:, dimension]]))[0, 1]
        assert correlation > 0.9


def test_each_dimension_has_variance_1_without_and_with_eps() -> None:
    for settings in ({"whitening": "none"}, {"eps": 0.1}, {"power": 0.5}):
        result = known(whitened(vectors(), ItemTextConfig(**settings)).vectors)
        torch.testing.assert_close(result.mean(dim=0), torch.zeros(6), rtol=0, atol=1e-4)
        torch.testing.assert_close(result.var(dim=0, correction=0), torch.ones(6), rtol=1e-4, atol=1e-4)


def test_fewer_components_without_scaling_keep_their_variances() -> None:
    result = known(whitened(vectors(), ItemTextConfig(whitening="none", num_components=2)).vectors)
    spread, principal = torch.cov(result.T).diagonal(), torch.linalg.eigvalsh(torch.cov(known(vectors()).T)).flip(0)
    torch.testing.assert_close(spread[0] / spread[1], principal[0] / principal[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("settings", [HALF_WAY, {}, {"whitening": "none"}, {"whitening": "pca"}])
def test_a_reader_makes_the_same_vectors(settings: dict[str, object]) -> None:
    found = whitened(vectors(), ItemTextConfig(**settings))
    made = TextReader(ItemTextConfig(), found.mean, found.axes).project(vectors())
    torch.testing.assert_close(made, found.vectors, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whitening", ["zca", "pca", "none"])
def test_directions_without_variance_become_0_for_new_texts_too(whitening: str) -> None:
    given = torch.cat([vectors(), vectors()[:, :2] @ torch.randn(2, 3)], dim=1)
    found = whitened(given, ItemTextConfig(whitening=whitening))
    new = torch.randn(5, 9) * 10
    assert TextReader(ItemTextConfig(), found.mean, found.axes).project(new).abs().max() < 1e4
    constant = whitened(torch.ones(5, 3), ItemTextConfig(whitening=whitening)).vectors
    assert torch.isfinite(constant).all()
