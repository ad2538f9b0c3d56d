"""Initial item vectors: leading components, and the projection of a teacher's scores."""

import torch
from encoding import encode
from torch import Tensor, nn

from slmrec.data.batching import pad_histories
from slmrec.models.projection import leading_components, projected_items
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.types import Batch, Encoded, Histories

NUM_ITEMS = 15


class Fixed(nn.Module):
    """Teacher with user vectors by the only item of a history."""

    num_items, max_history_items = NUM_ITEMS, 1

    def __init__(self, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self.users, self.items = users, items

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        return Encoded(self.users[histories.items[:, 0]])

    def item_vectors(self) -> Tensor:
        return self.items


def best_error(scores: Tensor, items: Tensor) -> float:
    """Return the squared error of the best user vectors for some item vectors."""
    solution = torch.linalg.lstsq(items, scores.T).solution
    return float((items @ solution - scores.T).square().sum())


def test_the_projection_is_the_truncated_singular_value_decomposition_of_the_scores() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(NUM_ITEMS + 1, 6), torch.randn(NUM_ITEMS + 1, 6)
    histories = Histories(torch.arange(1, NUM_ITEMS + 1)[:, None], torch.ones(NUM_ITEMS, dtype=torch.long))
    scores = users[1:] @ (items[1:] - items[1:].mean(dim=0)).T  # softmax ignores a constant of each user
    singular = torch.linalg.svdvals(scores)
    for width in (1, 3, 6, 8):
        projected = projected_items(Fixed(users, items), histories, width)
        assert projected.shape == (NUM_ITEMS + 1, width) and not projected[0].any()
        expected = float(singular[width:].square().sum())
        assert abs(best_error(scores, projected[1:, : min(width, 6)]) - expected) < 1e-3


def test_a_start_keeps_the_size_of_scores() -> None:
    torch.manual_seed(0)
    own = SasRec(SasRecConfig(num_items=NUM_ITEMS, hidden_size=8, item_dim=12)).eval()
    batch = Batch(pad_histories([[1], [2, 3]], 50), torch.ones(2, dtype=torch.long), False)
    vectors = 7 * torch.randn(NUM_ITEMS + 1, 12)
    bias = own.output_map[-1].bias
    before = own.output_map[-1].weight.detach().clone()
    own.start_items(vectors)
    scale = own.item_embeddings.weight[1, 0] / vectors[1, 0]
    torch.testing.assert_close(own.output_map[-1].weight, before / scale)
    assert not bias.any() and not own.item_embeddings.weight[0].any() and encode(own, batch).users.isfinite().all()


def test_missing_components_are_small_and_zero_rows_stay_zero() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(NUM_ITEMS + 1, 3)
    vectors[[0, 4]] = 0
    result = leading_components(vectors, 5)
    assert not result[[0, 4]].any()
    assert result[:, :3].square().mean() > 10 * result[:, 3:].square().mean() > 0
