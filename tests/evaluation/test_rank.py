import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from slmrec.data.dataset import Dataset
from slmrec.errors import TrainingError
from slmrec.evaluation import rank as evaluation
from slmrec.evaluation.candidates import draw_negatives
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, eval_mode, evaluate_scorer, throughput
from slmrec.pipeline.validation import Validation
from slmrec.types import Encoded, ItemBonus

ALL = ("full_history_excluded", "full", "sampled")


def dataset_of(histories, num_items):
    return Dataset(
        flat=np.concatenate(histories).astype(np.int64),
        offsets=np.cumsum([0, *map(len, histories)]),
        users=pa.table({"user_id": [f"u{user}" for user in range(len(histories))]}),
        items=pa.table({"item_id": [f"i{item}" for item in range(1, num_items + 1)]}),
        fingerprint="test",
    )


def random_dataset(num_users, num_items, seed=0):
    generator = np.random.default_rng(seed)
    return dataset_of(
        [generator.integers(1, num_items + 1, generator.integers(3, 12)) for _ in range(num_users)], num_items
    )


class FixedScorer:
    """The same scores for everyone."""

    max_history_items = 3

    def __init__(self, scores):
        self.scores = torch.tensor([-torch.inf, *scores])
        self.batch_sizes, self.block_sizes = [], []

    @property
    def num_items(self):
        return len(self.scores) - 1

    def read(self, batch):
        self.batch_sizes.append(len(batch.histories.items))
        assert batch.histories.items.shape[1] <= self.max_history_items
        return Encoded(batch.histories.lengths)

    def score(self, encoded):
        self.block_sizes.append(len(encoded.users))
        return self.scores.repeat(len(encoded.users), 1)


class MeanEncoder(nn.Module):
    """Mean of the history's item vectors, through dropout."""

    max_history_items = 4

    def __init__(self, num_items, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(num_items + 1, 8)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.num_table_reads = 0

    @property
    def num_items(self):
        return self.table.num_embeddings - 1

    def item_vectors(self):
        self.num_table_reads += 1
        return self.table.weight

    def encode(self, histories, *, every_position=False, num_blocks=0):
        items, lengths, _ = histories
        return Encoded(self.dropout((self.table(items) * (items > 0)[..., None]).sum(1) / lengths[:, None]))


def evaluate(scorer, samples, protocols=("full",), batch_size=4, **settings):
    """Rank; `sampled` stands for the sampled protocol of the negatives."""
    if settings.get("negatives") is not None:
        protocols = tuple(name.replace("sampled", f"sampled_{settings['negatives'].shape[1]}") for name in protocols)
    return evaluate_scorer(scorer, samples, batch_size=batch_size, protocols=protocols, **settings)


def test_each_protocol_ranks_among_its_own_candidates():
    # History 6, 5, 4; the target is 3. Better are 4, 5, 6 of the history, 7 and 8.
    samples = dataset_of([[6, 5, 4, 3]], 8).held_out("test")
    negatives = np.array([[1, 2, 8]], dtype=np.int32)
    ranks = evaluate(FixedScorer([1.0, 2, 3, 4, 5, 6, 7, 8]), samples, ALL, negatives=negatives)
    assert {name: values.tolist() for name, values in ranks.items()} == {
        "full_history_excluded": [2],
        "full": [5],
        "sampled_3": [1],
    }


def test_whole_history_is_excluded_although_the_scorer_reads_the_newest_items():
    samples = dataset_of([[8, 7, 6, 5, 4, 3, 2, 1]], 9).held_out("test")
    ranks = evaluate(FixedScorer([1.0, 2, 3, 4, 5, 6, 7, 8, 9]), samples, ("full_history_excluded",))
    assert ranks["full_history_excluded"].tolist() == [1]  # only item 9 is left above the target


def test_target_that_is_in_the_history_stays_a_candidate():
    samples = dataset_of([[3, 2, 4, 3]], 4).held_out("test")
    ranks = evaluate(FixedScorer([1.0, 2, 3, 4]), samples, ("full_history_excluded",))
    assert ranks["full_history_excluded"].tolist() == [0]


def test_one_forward_pass_serves_all_protocols_and_order_does_not_matter():
    dataset = random_dataset(10, 30)
    samples, negatives = dataset.held_out("test"), draw_negatives(dataset, 5, seed=0)
    scorer = EncoderScorer(MeanEncoder(30))
    together = evaluate(scorer, samples, ALL, negatives=negatives)
    backwards = evaluate(scorer, samples, ALL[::-1], negatives=negatives)
    for name, values in together.items():
        assert values.tolist() == backwards[name].tolist()
    counted = FixedScorer([0.0] * 30)
    evaluate(counted, samples, ALL, negatives=negatives)
    assert counted.batch_sizes == [4, 4, 2]


def test_batch_of_one_equals_batch_of_many():
    dataset = random_dataset(23, 40)
    samples, negatives = dataset.held_out("test"), draw_negatives(dataset, 9, seed=0)
    scorer = EncoderScorer(MeanEncoder(40))
    one = evaluate(scorer, samples, ALL, batch_size=1, negatives=negatives)
    many = evaluate(scorer, samples, ALL, batch_size=23, negatives=negatives)
    for name, values in one.items():
        assert values.tolist() == many[name].tolist()


def test_ranks_agree_with_a_naive_evaluation():
    dataset = random_dataset(30, 50, seed=3)
    model = MeanEncoder(50).eval()
    ranks = evaluate(EncoderScorer(model), dataset.held_out("valid"), ("full", "full_history_excluded"))
    table = model.table.weight.detach()
    for user in range(30):
        events = dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        history, target = events[:-2], events[-2]
        scores = table @ table[history[-4:]].mean(0)
        better = {item for item in range(1, 51) if item != target and scores[item] > scores[target]}
        assert ranks["full"][user] == len(better)
        assert ranks["full_history_excluded"][user] == len(better - set(history))


def test_constant_scorer_gets_k_of_the_catalogue():
    num_items, num_users = 40, 500
    dataset = random_dataset(num_users, num_items)
    negatives = draw_negatives(dataset, 19, seed=0)
    ranks = evaluate(FixedScorer([0.5] * num_items), dataset.held_out("test"), ALL, batch_size=64, negatives=negatives)
    full, sampled = ranking_metrics(ranks["full"]), ranking_metrics(ranks["sampled_19"])
    for k in (1, 5, 10):
        assert full[f"hit@{k}"] == pytest.approx(k / num_items, abs=1 / num_users)
        assert sampled[f"hit@{k}"] == pytest.approx(k / 20, abs=1 / num_users)


def test_constant_scorer_gets_k_of_what_is_left_wherever_the_history_lies():
    num_items, num_users = 40, 500
    generator = np.random.default_rng(0)
    # Five different items each: the target stands among the 36 outside the history.
    dataset = dataset_of([generator.permutation(num_items)[:5] + 1 for _ in range(num_users)], num_items)
    ranks = evaluate(FixedScorer([0.5] * num_items), dataset.held_out("test"), ALL[:1], batch_size=64)
    metrics = ranking_metrics(ranks["full_history_excluded"])
    for k in (1, 5, 10, 20):
        assert metrics[f"hit@{k}"] == pytest.approx(k / 36, abs=1 / num_users)


def test_nan_raises_under_every_protocol_that_has_the_item_as_candidate():
    scores = torch.arange(12.0).tolist()
    scores[6] = torch.nan  # item 7, outside all histories
    samples = dataset_of([[1, 2, 3, 4]], 12).held_out("test")
    for protocol in ALL:
        negatives = np.array([[7, 8]], dtype=np.int32) if protocol == "sampled" else None
        with pytest.raises(TrainingError, match=r"\(counted from 0\) 0: got NaN"):
            evaluate(FixedScorer(scores), samples, (protocol,), negatives=negatives)


def test_tie_seed_alone_decides_among_ties():
    samples = random_dataset(50, 20).held_out("test")
    scorer = FixedScorer([0.0] * 20)
    first = evaluate(scorer, samples, batch_size=7, tie_seed=1)["full"]
    assert first.tolist() == evaluate(scorer, samples, batch_size=50, tie_seed=1)["full"].tolist()
    assert first.tolist() != evaluate(scorer, samples, batch_size=50, tie_seed=2)["full"].tolist()
    as_hits = evaluate(scorer, samples, tie_seed=None)["full"]
    assert (as_hits <= first).all() and as_hits.sum() < first.sum()


def test_nan_names_users_of_the_data_set_and_not_rows_of_the_batch():
    class Broken(FixedScorer):
        def score(self, encoded):
            scores = super().score(encoded)
            scores[encoded.users == 2, 1] = torch.nan
            return scores

    samples = dataset_of([[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]], 4).held_out("test").take(np.array([2, 1]))
    with pytest.raises(TrainingError, match=r"\(counted from 0\) 1: got NaN"):
        evaluate(Broken([1.0, 2, 3, 4]), samples)


def test_padding_never_ranks():
    model = MeanEncoder(6)
    with torch.no_grad():
        model.table.weight[0] = 100.0
    samples = dataset_of([[1, 2, 3], [4, 5, 6, 1]], 6).held_out("test")
    batch = next(evaluation.by_length(samples, 2, 4))[1]
    scorer = EncoderScorer(model)
    assert scorer.score(scorer.read(batch))[:, 0].isneginf().all()
    assert evaluate(EncoderScorer(model), samples)["full"].max() <= 5


def test_scorer_that_lets_padding_compete_raises():
    scorer = FixedScorer([1.0, 2, 3])
    scorer.scores[0] = 0.0
    with pytest.raises(ValueError, match="column 0 of the scores belongs to the padding item"):
        evaluate(scorer, dataset_of([[1, 2, 3]], 3).held_out("test"))


@pytest.mark.parametrize(("protocols", "negatives"), [(("sampled_2",), None), (("full",), np.ones((1, 2), np.int32))])
def test_sampled_and_negatives_come_together(protocols, negatives):
    with pytest.raises(ValueError, match="a sampled protocol needs its negatives"):
        evaluate(FixedScorer([1.0, 2, 3]), dataset_of([[1, 2, 3]], 3).held_out("test"), protocols, negatives=negatives)


def test_large_catalogue_is_ranked_in_blocks_and_read_in_whole_batches(monkeypatch):
    samples = random_dataset(7, 20).held_out("test")
    expected = evaluate(EncoderScorer(MeanEncoder(20)), samples, batch_size=100)
    monkeypatch.setattr(evaluation, "MAX_SCORES", 3 * 21)
    scorer = FixedScorer([0.0] * 20)
    evaluate(scorer, samples, batch_size=100)
    assert scorer.batch_sizes == [7]
    assert scorer.block_sizes == [3, 3, 1]
    in_blocks = evaluate(EncoderScorer(MeanEncoder(20)), samples, batch_size=100)
    assert in_blocks["full"].tolist() == expected["full"].tolist()


def top_lists_of(scorer, samples, protocols=ALL[:2], **settings):
    lists = {}

    def keep(protocol, rows, items):
        lists.setdefault(protocol, np.full((len(samples), evaluation.TOP_K), -1))[rows] = items

    ranks = evaluate(scorer, samples, protocols, top_lists=keep, **settings)
    return ranks, lists


def test_top_lists_hold_what_would_be_recommended_best_first():
    # History 12, 11, 3; the target is 5. Items 1 and 2 score alike.
    samples = dataset_of([[12, 11, 3, 5]], 12).held_out("test")
    negatives = np.array([[1, 2]], dtype=np.int32)
    _, lists = top_lists_of(FixedScorer([2.0, 2, *range(3, 13)]), samples, ALL, negatives=negatives)
    assert {name: items.tolist() for name, items in lists.items()} == {
        "full_history_excluded": [[10, 9, 8, 7, 6, 5, 4, 1, 2, 0]],  # nine are left
        "full": [[12, 11, 10, 9, 8, 7, 6, 5, 4, 3]],
    }


def test_top_lists_do_not_know_the_target():
    # The first target, 12, is in the history: a candidate for its rank, but nothing to recommend.
    samples = dataset_of([[12, 1, 12], [1, 2, 11]], 12).held_out("test")
    ranks, lists = top_lists_of(FixedScorer([float(item) for item in range(1, 13)]), samples)
    assert ranks["full_history_excluded"].tolist() == [0, 1]
    assert lists["full_history_excluded"].tolist() == [
        [11, 10, 9, 8, 7, 6, 5, 4, 3, 2],
        [12, 11, 10, 9, 8, 7, 6, 5, 4, 3],
    ]


def test_top_lists_of_a_small_catalogue_are_filled_up():
    samples = dataset_of([[1, 2, 3], [3, 2, 1, 3]], 3).held_out("test")
    _, lists = top_lists_of(FixedScorer([1.0, 2, 3]), samples)
    assert lists["full"].tolist() == [[3, 2, 1, *[0] * 7]] * 2
    assert lists["full_history_excluded"].tolist() == [[3, *[0] * 9], [0] * 10]


def test_top_lists_agree_with_ranks_and_with_sorting():
    dataset, model = random_dataset(40, 60, seed=1), MeanEncoder(60).eval()
    samples = dataset.held_out("test")
    ranks, lists = top_lists_of(EncoderScorer(model), samples, batch_size=7)
    assert evaluate(EncoderScorer(model), samples, ALL[:2])["full"].tolist() == ranks["full"].tolist()
    table = model.table.weight.detach()
    for user in range(40):
        events = dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        history, target = events[:-1], events[-1]
        best = (table @ table[history[-4:]].mean(0))[1:].argsort(descending=True) + 1
        assert lists["full"][user].tolist() == best[:10].tolist()
        unseen = [item for item in best.tolist() if item not in history]
        assert lists["full_history_excluded"][user].tolist() == unseen[:10]
        assert (target in lists["full"][user]) == (ranks["full"][user] < 10)
        hit = ranks["full_history_excluded"][user] < 10 and target not in history
        assert (target in lists["full_history_excluded"][user]) == hit


def test_top_lists_take_no_second_pass():
    samples, scorer = random_dataset(10, 30).held_out("test"), FixedScorer([0.0] * 30)
    top_lists_of(scorer, samples)
    assert scorer.batch_sizes == scorer.block_sizes == [4, 4, 2]


def test_progress_counts_the_users():
    done = []
    evaluate(FixedScorer([0.0] * 20), random_dataset(7, 20).held_out("test"), progress=done.append)
    assert done == [4, 3]


def test_scoring_is_done_in_eval_mode_and_every_part_gets_its_mode_back():
    model = MeanEncoder(20).train()
    model.frozen.eval()
    samples = random_dataset(9, 20).held_out("valid")
    first, second = Validation(samples, "full").metrics(model), Validation(samples, "full").metrics(model)
    assert first == second  # no dropout
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert Validation(samples, "full").metrics(model.eval()) == first
    assert not model.training


def test_mode_comes_back_after_an_error():
    model = MeanEncoder(20).train()
    with pytest.raises(RuntimeError), eval_mode(model):
        raise RuntimeError
    assert model.training


def test_encoder_without_modes_is_scored_as_it_is():
    class Exported:
        num_items, max_history_items = 20, 4

        def __init__(self, model):
            self.encode, self.item_vectors = model.encode, model.item_vectors

    samples = random_dataset(9, 20).held_out("valid")
    model = MeanEncoder(20).eval()
    assert Validation(samples, "full").metrics(Exported(model)) == Validation(samples, "full").metrics(model)


def test_model_can_train_after_evaluation_and_item_vectors_are_not_read_for_each_batch():
    model = MeanEncoder(20).train()
    samples = random_dataset(9, 20).held_out("valid")
    evaluate(EncoderScorer(model), samples, batch_size=2)
    assert model.num_table_reads <= 2 and model.training
    batch = next(evaluation.by_length(samples, 4, 4))[1]
    (model.encode(batch.histories).users @ model.item_vectors().T).sum().backward()
    assert model.table.weight.grad is not None


class BonusEncoder(MeanEncoder):
    """Adds 100 to the score of item 2 of every user."""

    def encode(self, histories, *, every_position=False, num_blocks=0):
        users = super().encode(histories).users
        items, scores = torch.tensor([[2, 0]]), torch.tensor([[100.0, 9.0]])
        return Encoded(users, bonus=ItemBonus(items.repeat(len(users), 1), scores.repeat(len(users), 1)))


def test_bonus_is_added_to_the_scores_and_changes_ranks(monkeypatch):
    samples = dataset_of([[5, 4, 3, 2]] * 5, 6).held_out("test")
    plain, model = MeanEncoder(6).eval(), BonusEncoder(6).eval()
    assert evaluate(EncoderScorer(plain), samples)["full"].min() > 0
    for block in (1, 3, 100):
        monkeypatch.setattr(evaluation, "MAX_SCORES", block * 7)
        assert evaluate(EncoderScorer(model), samples, batch_size=4)["full"].tolist() == [0] * 5
        assert throughput({"model": EncoderScorer(model)}, samples, batch_size=4, rounds=1)["model"] > 0.1


def test_validate_is_full_ranking_of_the_given_samples():
    samples = random_dataset(30, 20).held_out("valid").take(np.array([3, 5, 8]))
    model = MeanEncoder(20)
    expected = ranking_metrics(evaluate(EncoderScorer(model), samples)["full"])
    assert Validation(samples, "full").metrics(model) == expected
    assert {"hit@10", "ndcg@10", "mrr"} <= expected.keys()


def test_negatives_are_distinct_items_that_the_user_never_touched():
    dataset = random_dataset(200, 30)
    negatives = draw_negatives(dataset, 15, seed=0)
    assert negatives.shape == (200, 15)
    assert negatives.dtype == np.int32
    assert negatives.min() >= 1
    assert negatives.max() <= 30
    for user, drawn in enumerate(negatives.tolist()):
        assert len(set(drawn)) == 15
        assert not set(drawn) & set(dataset.flat[dataset.offsets[user] : dataset.offsets[user + 1]].tolist())


def test_some_users_are_ranked_against_their_own_negatives():
    dataset = random_dataset(20, 60)
    samples, negatives = dataset.held_out("test"), draw_negatives(dataset, 5, seed=0)
    scorer, some = FixedScorer(torch.arange(60.0).tolist()), np.array([17, 4, 11, 2, 9])
    everyone = evaluate(scorer, samples, ("sampled",), negatives=negatives)["sampled_5"]
    ranks = evaluate(scorer, samples.take(some), ("sampled",), batch_size=2, negatives=negatives)["sampled_5"]
    assert ranks.tolist() == everyone[some].tolist()
    assert len(set(ranks.tolist())) > 1


def test_throughput_takes_turns_and_reports_the_median(monkeypatch):
    turns = []

    def seconds(scorer, batches):
        turns.append((scorer.name, sum(len(batch.histories.items) for batch in batches)))
        return scorer.times.pop(0)

    monkeypatch.setattr(evaluation, "_seconds", seconds)
    slow, fast = FixedScorer([0.0] * 20), FixedScorer([0.0] * 20)
    slow.name, slow.times = "slow", [99.0, 4.0, 5.0, 50.0]
    fast.name, fast.times = "fast", [99.0, 2.0, 0.5, 1.0]
    result = throughput({"slow": slow, "fast": fast}, random_dataset(10, 20).held_out("test"), batch_size=4)
    assert result == {"slow": 2.0, "fast": 10.0}
    assert turns == [("slow", 2), ("fast", 2), *[("slow", 10), ("fast", 10)] * 3]


def test_throughput_of_a_real_scorer_is_positive():
    samples = random_dataset(10, 5).held_out("test")
    result = throughput({"model": EncoderScorer(MeanEncoder(5))}, samples, batch_size=4, rounds=1)
    assert result["model"] > 0
