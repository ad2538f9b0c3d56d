"""Cosines and CKA by hand, against a slow form, and what they are blind to."""

import numpy as np
import pytest
import torch

from slmrec.studies.layer_similarity import cka, layer_cosines
from slmrec.studies.linear_probes import LinearHeads, apply_head


def slow_hsic(left: np.ndarray, right: np.ndarray) -> float:
    """Song et al. 2012, eq. 5: as it stands there."""
    size = len(left)
    left, right = left - np.diag(np.diag(left)), right - np.diag(np.diag(right))
    ones = np.ones(size)
    first = np.trace(left @ right)
    second = (ones @ left @ ones) * (ones @ right @ ones) / ((size - 1) * (size - 2))
    third = 2 / (size - 2) * (ones @ left @ right @ ones)
    return float(first + second - third) / (size * (size - 3))


def test_cka_is_the_ratio_of_unbiased_estimates() -> None:
    states = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0)) + 1
    grams = [one.double().numpy() @ one.double().numpy().T for one in states]
    expected = [[slow_hsic(a, b) / np.sqrt(slow_hsic(a, a) * slow_hsic(b, b)) for b in grams] for a in grams]
    np.testing.assert_allclose(cka(states).numpy(), expected, atol=1e-6)


def test_cka_does_not_see_rotation_scale_and_offset() -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(40, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    other = torch.randn(40, 6, generator=generator)
    found = cka(torch.stack([states, 3 * states @ rotation + 5, other]))
    assert found[0, 1] == pytest.approx(1, abs=1e-4)
    assert abs(float(found[0, 2])) < 0.2  # the plain estimate gives 0.13 to 0.3 to what is unrelated


def test_cka_refuses_too_few_users() -> None:
    with pytest.raises(ValueError, match="3 users, expected at least 4"):
        cka(torch.ones(2, 3, 5))


def test_cosines_are_means_over_users_of_neighbours() -> None:
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 1.0]], [[-1.0, -1.0], [3.0, 0.0]]])
    torch.testing.assert_close(layer_cosines(states), torch.tensor([(0.5**0.5 + 1) / 2, -0.5]))


def test_heads_find_affine_maps_from_batches() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, weights = torch.randn(2, 500, 5, generator=generator), torch.randn(5, 3, generator=generator)
    outputs = inputs[1] @ weights + 2.0
    heads = LinearHeads(2, 5, 3)
    for at in range(0, 500, 128):
        heads.add(inputs[:, at : at + 128], outputs[at : at + 128])
    unrelated, exact = heads.solve()
    torch.testing.assert_close(apply_head(exact, inputs[1]), outputs, atol=5e-3, rtol=0)
    expected = np.linalg.lstsq(np.c_[inputs[0], np.ones(500)], outputs.numpy(), rcond=None)[0]
    np.testing.assert_allclose(unrelated.numpy(), expected, atol=5e-3)
