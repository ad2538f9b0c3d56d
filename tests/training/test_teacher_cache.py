"""Stored outputs are the teacher's own, by any rows; what is not what was asked for is refused."""

import fcntl
import json
from collections import namedtuple
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode
from safetensors.numpy import load_file, save_file
from torch import nn

from slmrec.config import TrainConfig
from slmrec.data.batching import collate
from slmrec.data.dataset import Samples
from slmrec.errors import CheckpointError
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder, student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.training import teacher_cache as teacher_states
from slmrec.training.losses import DistillationLoss, LiveTeacher
from slmrec.training.teacher_cache import StoredTeacher, fingerprint, store_teacher_states
from slmrec.training.trainer import TrainingSamples, fit
from slmrec.types import Encoded, Histories

HIDDEN, WIDTH, NUM_ITEMS, MAX_HISTORY = 16, 8, 20, 6
DECODER = {
    "model_type": "llama",
    "vocab_size": 1,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
BOTH = pytest.mark.parametrize("every_position", [False, True])


def a_teacher() -> DecoderRecommender:
    torch.manual_seed(0)
    return build_decoder(
        Backbone(random_decoder(DECODER), 0.3 * torch.randn(3, HIDDEN), torch.zeros(0, HIDDEN)),
        (0, 1, 2, 3),
        torch.randn(NUM_ITEMS + 1, WIDTH),
        source="random",
        lora=None,
        positions="contiguous",
        max_history_items=MAX_HISTORY,
        item_dropout=0.2,
        train_items=True,
    )


def some_samples() -> Samples:
    """Of 1 to 9 items, of which the newest 6 are read."""
    lengths = np.array([3, 9, 1, 6, 2, 8, 4, 7, 1, 5, 3])
    ends = np.cumsum(lengths + 1) - 1
    flat = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, ends[-1] + 1)
    return Samples.of(flat, ends - lengths, ends, np.arange(len(lengths)))


def settings(every_position: bool = False, num_blocks: int = 2) -> dict[str, Any]:
    return {"num_blocks": num_blocks, "max_history_items": MAX_HISTORY, "every_position": every_position}


def store(path: Path, teacher: nn.Module, **wanted: Any) -> None:
    store_teacher_states(teacher, some_samples(), path, fingerprint="key", batch_size=4, **wanted)  # type: ignore[arg-type]


def opened(path: Path, teacher: DecoderRecommender, key: str = "key", **wanted: Any) -> StoredTeacher:
    return StoredTeacher.open(path, key, teacher.item_vectors(), some_samples(), **wanted)


@BOTH
def test_stored_is_what_the_teacher_says_whatever_the_rows(tmp_path: Path, every_position: bool) -> None:
    teacher, path, wanted = a_teacher(), tmp_path / "states.safetensors", settings(every_position)
    seen: list[int] = []
    store_teacher_states(teacher, some_samples(), path, fingerprint="key", batch_size=4, progress=seen.append, **wanted)
    assert seen == [4, 4, 3] and teacher.training
    stored = opened(path, teacher, **wanted)
    assert torch.equal(stored.item_vectors(), teacher.item_vectors())
    for rows in ([4], [10, 0, 2, 2, 7], list(range(11))):
        batch = collate(some_samples(), np.array(rows), MAX_HISTORY, every_position)
        with torch.inference_mode():
            expected = encode(teacher.eval(), batch, 2)
        found = stored.outputs(batch, 2)
        torch.testing.assert_close(found.users, expected.users, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert stored.outputs(batch, 0).hidden_states == ()


def test_the_file_is_safetensors_and_mapped_not_read(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings(True))
    tensors, num_read = load_file(path), int(some_samples().clipped_lengths(MAX_HISTORY).sum())
    assert {name: value.shape for name, value in tensors.items()} == {
        "blocks": (2, num_read, HIDDEN),
        "users": (num_read, WIDTH),
    }
    stored = opened(path, teacher, **settings(True))
    assert all(isinstance(values, np.memmap) and not values.flags.writeable for values in stored._stored)
    assert list(stored.parameters()) == [] and stored.state_dict() == {}


def test_users_alone(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings(num_blocks=0))
    assert list(load_file(path)) == ["users"]
    stored, batch = opened(path, teacher, **settings(num_blocks=0)), collate(some_samples(), np.arange(3), MAX_HISTORY)
    assert stored.outputs(batch, 0).users.shape == (3, WIDTH)
    with pytest.raises(ValueError, match="num_blocks is 2, but 0 blocks are stored"):
        stored.outputs(batch, 2)


def test_batches_of_other_samples_are_refused(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings(True))
    stored, rows = opened(path, teacher, **settings(True)), np.arange(3)
    with pytest.raises(ValueError, match="has no rows"):
        stored.outputs(collate(some_samples(), rows, MAX_HISTORY, True)._replace(rows=None), 0)
    for batch in (collate(some_samples(), rows, MAX_HISTORY), collate(some_samples(), rows, 2, True)):
        with pytest.raises(ValueError, match=r"has \d read-outs, but 10 are stored for its rows"):
            stored.outputs(batch, 0)


def test_the_fingerprint_knows_teacher_data_and_settings() -> None:
    def key(teacher: nn.Module | None = None, samples: Samples | None = None, **changes: Any) -> str:
        return fingerprint(teacher or a_teacher(), samples or some_samples(), **(settings() | changes))

    other, deeper, half = a_teacher(), a_teacher(), a_teacher().to(torch.bfloat16)
    other.score.weight.data[3, 2] += 1e-6
    deeper.config.decoder["rope_theta"] = 7.0
    samples = some_samples()
    moved = samples.flat.copy()
    moved[2] = moved[2] % NUM_ITEMS + 1
    found = [
        key(),
        key(other),
        key(deeper),
        key(half),
        key(samples=Samples(moved, samples.num, samples.spans)),
        key(samples=samples.take(np.arange(10))),
        key(samples=samples.take(np.arange(11)[::-1])),
        *(key(**{name: value}) for name, value in (("num_blocks", 4), ("max_history_items", 5))),
        key(every_position=True),
    ]
    assert len(set(found)) == len(found)
    assert key() == found[0]
    narrow = Samples(samples.flat.astype(np.int32), samples.num, samples.spans)
    assert key(samples=narrow) == found[0]  # the same items, however they are stored


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def garbage(path: Path) -> None:
    path.write_bytes(b"not at all what was stored here")


def without_blocks(path: Path) -> None:
    save_file({"users": load_file(path)["users"]}, path, {"version": "1", "fingerprint": "key"})


def in_half_precision(path: Path) -> None:
    tensors = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    save_file(tensors, path, {"version": "1", "fingerprint": "key"})


def of_another_version(path: Path) -> None:
    save_file(load_file(path), path, {"version": "0", "fingerprint": "key"})


def of_nobody(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, "cut short, or not what was stored"),
        (garbage, "cut short, or not what was stored"),
        (without_blocks, r"content is \{'users': \(11, 8\)\}, expected \{'blocks': \(2, 11, 0\)"),
        (in_half_precision, r"precision is \{'F16'\}, expected \{'F32'\}"),
        (of_another_version, "format version is 0, expected 1"),
        (of_nobody, "format version is None, expected 1"),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, spoil: Any, expected: str) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings())
    spoil(path)
    with pytest.raises(
        CheckpointError, match=f"states.safetensors: .*{expected}.*delete the file; it is computed anew"
    ) as caught:
        opened(path, teacher, **settings())
    assert "\n" not in str(caught.value)


def test_a_file_of_another_teacher_or_other_samples_is_refused(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings())
    with pytest.raises(CheckpointError, match="fingerprint is key, expected other; delete the file"):
        opened(path, teacher, "other", **settings())
    with pytest.raises(CheckpointError, match=r"content is .*\(11, 8\)\}, expected .*\(43, 8\)\}"):
        opened(path, teacher, **settings(True))


class Dying(nn.Module):
    """A teacher that dies after so many batches."""

    def __init__(self, teacher: DecoderRecommender, batches: int) -> None:
        super().__init__()
        self.teacher, self.batches = teacher, batches

    def item_vectors(self) -> torch.Tensor:
        return self.teacher.item_vectors()

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        return self.teacher.encode(histories, every_position=every_position, num_blocks=num_blocks)


def test_an_interrupted_pass_leaves_no_file_and_the_next_one_is_whole(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    with pytest.raises(KeyboardInterrupt):
        store(path, Dying(teacher, 2), **settings(True))
    assert [left.name for left in tmp_path.iterdir()] == ["states.partial"]
    store(path, teacher, **settings())  # smaller than what was left behind
    store(tmp_path / "alone.safetensors", teacher, **settings())
    assert path.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert sorted(left.name for left in tmp_path.iterdir()) == ["alone.safetensors", "states.safetensors"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    store(path, teacher, **settings())
    before = path.stat().st_mtime_ns
    store(path, Dying(teacher, 1), **settings())
    assert path.stat().st_mtime_ns == before
    assert [left.name for left in tmp_path.iterdir()] == ["states.safetensors"]


def test_a_second_run_waits_for_the_one_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    with path.with_suffix(".partial").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        second = Thread(target=store, args=(path, a_teacher()), kwargs=settings(), daemon=True)
        second.start()
        second.join(timeout=2)
        assert second.is_alive() and not path.with_suffix(".partial").stat().st_size
    second.join(timeout=60)  # the first one died, so the second writes
    assert opened(path, a_teacher(), **settings()).outputs(collate(some_samples(), np.arange(2), MAX_HISTORY), 2)


def test_a_full_disk_is_said_before_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")(10)
    monkeypatch.setattr(teacher_states.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0 MB, but 0 MB are free; .*distill\.teacher_states"):
        store(tmp_path / "states.safetensors", a_teacher(), **settings())
    assert not (tmp_path / "states.safetensors").exists()


@BOTH
def test_training_is_that_with_the_live_teacher(tmp_path: Path, every_position: bool) -> None:
    wanted, path = settings(every_position), tmp_path / "states.safetensors"
    store(path, a_teacher(), **wanted)
    train = TrainConfig(
        learning_rate=1e-3, num_train_epochs=3, per_device_train_batch_size=4, warmup_steps=2, bf16=False
    )

    def trained(name: str, stored: bool) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        live = a_teacher()
        student = student_from(live, (0, 1), item_dropout=0.1, train_items=True)
        torch.manual_seed(1)
        loss = DistillationLoss(
            student,
            opened(path, live, **wanted) if stored else LiveTeacher(live),
            widths=(HIDDEN, HIDDEN),
            item_width=WIDTH,
            num_blocks=2,
            weights={"ce": 1.0, "cosine": 1.0, "norm": 0.1, "multiple": 1.0, "kl": 1.0},
        )
        data = TrainingSamples(some_samples(), MAX_HISTORY, every_position)
        folder = tmp_path / name
        scores = iter(np.linspace(0.1, 0.9, 9))
        fit(loss, data, train, validate=lambda: {"ndcg@10": next(scores)}, folder=folder, seed=1, name="distill")
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        return student.state_dict(), [{key: line[key] for key in line if key.startswith("train/")} for line in log]

    (weights, log), (same_weights, same_log) = trained("live", False), trained("stored", True)
    assert len(log) == 3 and {"train/cosine", "train/norm", "train/kl"} <= log[0].keys()
    for line, same in zip(log, same_log, strict=True):
        assert same == pytest.approx(line, rel=1e-6, abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(same_weights[name], value, rtol=0, atol=1e-6)
