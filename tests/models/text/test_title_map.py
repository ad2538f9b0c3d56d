"""Text vectors inside a model."""

import torch

from slmrec.models.text.item_text import TitleMap


def test_an_item_without_title_is_mapped_to_nothing() -> None:
    titles = TitleMap(3, 4, 2)
    titles.vectors[2] = 1
    assert titles().shape == (4, 2)
    assert not titles(torch.tensor([0, 1, 3])).any() and titles(torch.tensor([2])).any()
