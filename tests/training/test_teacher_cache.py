"""Cached outputs equal those of the teacher for any samples; files of other teachers or data are refused."""

import fcntl
import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode
from safetensors.numpy import load_file, save_file
from torch import nn

from slmrec.config import DecoderModel, DistillConfig
from slmrec.data.batching import collate
from slmrec.data.dataset import Samples
from slmrec.data.event_times import EventTimes
from slmrec.errors import CheckpointError
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder, student_from
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training import teacher_cache
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.teacher import LiveTeacher
from slmrec.training.teacher_cache import CachedTeacher, cache_keys, write_teacher_cache
from slmrec.training.trainer import fit
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
    settings = DecoderModel(backbone_config=DECODER, num_layers=4, max_history_items=MAX_HISTORY, item_dropout=0.2)
    return build_decoder(
        settings.model_copy(update={"layer_dropout": 0.0}),
        Backbone(random_decoder(DECODER), 0.3 * torch.randn(3, HIDDEN), torch.zeros(0, HIDDEN)),
        torch.randn(NUM_ITEMS + 1, WIDTH),
        None,
        section="finetune",
        train_items=True,
    )


def some_samples() -> Samples:
    """Samples of 1 to 9 items, of which the newest 6 are read."""
    lengths = np.array([3, 9, 1, 6, 2, 8, 4, 7, 1, 5, 3])
    ends = np.cumsum(lengths + 1) - 1
    flat = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, ends[-1] + 1)
    return Samples.of(flat, ends - lengths, ends, np.arange(len(lengths)))


def data_of(every_position: bool = False, max_history_items: int = MAX_HISTORY) -> TrainingSamples:
    return TrainingSamples(some_samples(), max_history_items, every_position)


def write(path: Path, teacher: Any, every_position: bool = False, num_blocks: int = 2, **options: Any) -> None:
    write_teacher_cache(
        teacher, data_of(every_position), path, num_blocks=num_blocks, key="key", batch_size=4, **options
    )


def opened(
    path: Path, teacher: DecoderRecommender, every_position: bool = False, num_blocks: int = 2, key: str = "key"
) -> CachedTeacher:
    return CachedTeacher.open(path, key, teacher.item_vectors(), data_of(every_position), num_blocks=num_blocks)


@BOTH
def test_cached_outputs_are_those_of_the_teacher_for_any_samples(tmp_path: Path, every_position: bool) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    seen: list[int] = []
    write(path, teacher, every_position, progress=seen.append)
    assert seen == [4, 4, 3] and teacher.training
    stored = opened(path, teacher, every_position)
    assert torch.equal(stored.item_vectors(), teacher.item_vectors())
    assert stored.hidden_size == HIDDEN
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
    write(path, teacher, True)
    tensors, num_read = load_file(path), int(some_samples().clipped_lengths(MAX_HISTORY).sum())
    assert {name: value.shape for name, value in tensors.items()} == {
        "blocks": (2, num_read, HIDDEN),
        "users": (num_read, WIDTH),
    }
    stored = opened(path, teacher, True)
    assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in stored._parts)
    assert list(stored.parameters()) == [] and stored.state_dict() == {}


def test_users_alone(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    write(path, teacher, num_blocks=0)
    assert list(load_file(path)) == ["users"]
    stored, batch = opened(path, teacher, num_blocks=0), collate(some_samples(), np.arange(3), MAX_HISTORY)
    assert stored.outputs(batch, 0).users.shape == (3, WIDTH)
    with pytest.raises(ValueError, match="num_blocks is 2, but 0 blocks are cached"):
        stored.outputs(batch, 2)


def test_batches_of_other_samples_are_refused(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    write(path, teacher, True)
    stored, rows = opened(path, teacher, True), np.arange(3)
    with pytest.raises(ValueError, match=r"has no sample numbers \(rows\)"):
        stored.outputs(collate(some_samples(), rows, MAX_HISTORY, True)._replace(rows=None), 0)
    for batch in (collate(some_samples(), rows, MAX_HISTORY), collate(some_samples(), rows, 2, True)):
        with pytest.raises(ValueError, match=r"has \d supervised positions, but 10 are cached for its samples"):
            stored.outputs(batch, 0)


def test_the_keys_depend_on_teacher_data_and_settings() -> None:
    def key(teacher: nn.Module | None = None, samples: Samples | None = None, num_blocks: int = 2, **read: Any) -> str:
        settings: dict[str, Any] = {"max_history_items": MAX_HISTORY, "every_position": False} | read
        data = TrainingSamples(samples or some_samples(), **settings)
        return cache_keys(teacher or a_teacher(), data, [num_blocks])[num_blocks]

    other, deeper, half = a_teacher(), a_teacher(), a_teacher().to(torch.bfloat16)
    other.score.weight.data[3, 2] += 1e-6
    deeper.config.decoder["rope_theta"] = 7.0
    samples = some_samples()
    moved = samples.flat.copy()
    moved[2] = moved[2] % NUM_ITEMS + 1
    keys = [
        key(),
        key(other),
        key(deeper),
        key(half),
        key(samples=Samples(moved, samples.num, samples.spans)),
        key(samples=samples.take(np.arange(10))),
        key(samples=samples.take(np.arange(11)[::-1])),
        key(num_blocks=4),
        key(max_history_items=5),
        key(every_position=True),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    assert cache_keys(a_teacher(), data_of(), (0, 2, 4)) == {0: key(num_blocks=0), 2: keys[0], 4: key(num_blocks=4)}
    narrow = Samples(samples.flat.astype(np.int32), samples.num, samples.spans)
    assert key(samples=narrow) == keys[0]  # the same items in a smaller type


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def garbage(path: Path) -> None:
    path.write_bytes(b"not at all what was stored here")


def without_blocks(path: Path) -> None:
    save_file({"users": load_file(path)["users"]}, path, {"version": "1", "key": "key"})


def in_half_precision(path: Path) -> None:
    tensors = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    save_file(tensors, path, {"version": "1", "key": "key"})


def of_another_version(path: Path) -> None:
    save_file(load_file(path), path, {"version": "0", "key": "key"})


def of_nobody(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, "damaged or incomplete"),
        (garbage, "damaged or incomplete"),
        (without_blocks, r"content is \{'users': \(11, 8\)\}, expected \{'blocks': \(2, 11, 0\)"),
        (in_half_precision, r"precision is \{'F16'\}, expected \{'F32'\}"),
        (of_another_version, "format version is 0, expected 1"),
        (of_nobody, "format version is None, expected 1"),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, spoil: Any, expected: str) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    write(path, teacher)
    spoil(path)
    with pytest.raises(
        CheckpointError, match=f"states.safetensors: .*{expected}.*delete the file, and it will be computed again"
    ) as caught:
        opened(path, teacher)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_teacher_or_other_samples_is_refused(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    write(path, teacher)
    with pytest.raises(CheckpointError, match="key is key, expected other; delete the file"):
        opened(path, teacher, key="other")
    with pytest.raises(CheckpointError, match=r"content is .*\(11, 8\)\}, expected .*\(43, 8\)\}"):
        opened(path, teacher, True)


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
        write(path, Dying(teacher, 2), True)
    assert [left.name for left in tmp_path.iterdir()] == ["states.partial"]
    write(path, teacher)  # smaller than the rest of the interrupted pass
    write(tmp_path / "alone.safetensors", teacher)
    assert path.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    assert sorted(left.name for left in tmp_path.iterdir()) == ["alone.safetensors", "states.safetensors"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    teacher, path = a_teacher(), tmp_path / "states.safetensors"
    write(path, teacher)
    before = path.stat().st_mtime_ns
    write(path, Dying(teacher, 1))
    assert path.stat().st_mtime_ns == before
    assert [left.name for left in tmp_path.iterdir()] == ["states.safetensors"]


def test_a_second_run_waits_for_the_one_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    with path.with_suffix(".partial").open("wb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        second = Thread(target=write, args=(path, a_teacher()), daemon=True)
        second.start()
        second.join(timeout=2)
        assert second.is_alive() and not path.with_suffix(".partial").stat().st_size
    second.join(timeout=60)  # the first one died, so the second writes
    assert opened(path, a_teacher()).outputs(collate(some_samples(), np.arange(2), MAX_HISTORY), 2)


def test_a_full_disk_is_said_before_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")(10)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0 MB, but 0 MB are free; .*choose an --output"):
        write(tmp_path / "states.safetensors", a_teacher())
    assert not (tmp_path / "states.safetensors").exists()


@BOTH
def test_training_is_that_with_the_live_teacher(tmp_path: Path, every_position: bool) -> None:
    path = tmp_path / "states.safetensors"
    write(path, a_teacher(), every_position)
    train = {"learning_rate": 1e-3, "num_train_epochs": 3, "per_device_train_batch_size": 4, "warmup_steps": 2}
    settings = DistillConfig.model_validate(
        {"num_blocks": 2, "weights": {"kl": 1.0, "norm": 0.1}, "train": train | {"bf16": False}}
    )

    def trained(name: str, is_cached: bool) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        live = a_teacher()
        student = student_from(live, (0, 1), item_dropout=0.1, train_items=True)
        torch.manual_seed(1)
        teacher = opened(path, live, every_position) if is_cached else LiveTeacher(live)
        loss = DistillationLoss(student, teacher, settings, CatalogueLoss(settings.train))
        folder = tmp_path / name
        scores = iter(np.linspace(0.1, 0.9, 9))
        fit(
            loss,
            data_of(every_position),
            settings.train,
            validate=lambda: {"ndcg@10": next(scores)},
            folder=folder,
            seed=1,
            name="distill",
        )
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        return student.state_dict(), [{key: line[key] for key in line if key.startswith("train/")} for line in log]

    (weights, log), (same_weights, same_log) = trained("live", False), trained("cached", True)
    assert len(log) == 3 and {"train/cosine", "train/norm", "train/kl"} <= log[0].keys()
    for line, same in zip(log, same_log, strict=True):
        assert same == pytest.approx(line, rel=1e-6, abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(same_weights[name], value, rtol=0, atol=1e-6)


def test_the_times_of_events_count_where_the_teacher_reads_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_items": NUM_ITEMS, "hidden_size": 8, "max_history_items": MAX_HISTORY, "positions": "relative"}
    plain, reader = SasRec(SasRecConfig(**sizes)), SasRec(SasRecConfig(**sizes, time_gaps={}, timestamp_unit="ms"))
    for weight in reader.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    samples, path = some_samples(), tmp_path / "states.safetensors"
    times = np.random.default_rng(1).integers(0, 10**6, len(samples.flat)).cumsum()
    timed = [replace(samples, times=EventTimes("s", values)) for values in (times, 2 * times)]
    data = [TrainingSamples(some, MAX_HISTORY, True) for some in timed]
    assert len({cache_keys(reader, one, [0])[0] for one in data}) == 2
    assert len({cache_keys(plain, one, [0])[0] for one in [*data, data_of(True)]}) == 1
    write_teacher_cache(reader, data[0], path, num_blocks=0, key="key", batch_size=4)
    stored = CachedTeacher.open(path, "key", reader.item_vectors(), data[0], num_blocks=0)
    batch = collate(timed[0], np.arange(11), MAX_HISTORY, True, timestamp_unit="ms")
    with torch.inference_mode():
        expected = encode(reader.eval(), batch).users
    torch.testing.assert_close(stored.outputs(batch, 0).users, expected, rtol=1e-5, atol=1e-6)
