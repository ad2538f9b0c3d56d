"""Item vectors that users bring, and pickles that may build tensors and nothing else."""

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slmrec.data.item_vectors import read_item_vectors
from slmrec.errors import DataError

VECTORS = torch.arange(12, dtype=torch.float32).reshape(4, 3)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "tensor", "array", "parameter", "named"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_read(kind: str, padded: bool, tmp_path: Path) -> None:
    vectors = torch.cat([torch.full((1, 3), 9.0), VECTORS]) if padded else VECTORS
    path = tmp_path / ("v.npy" if kind == "npy" else "v.safetensors" if kind == "safetensors" else "v.pkl")
    if kind == "npy":
        np.save(path, vectors.numpy())
    elif kind == "safetensors":
        save_file({"any": vectors.contiguous()}, path)
    else:
        value: Any = {
            "tensor": vectors,
            "array": vectors.numpy(),
            "parameter": torch.nn.Parameter(vectors),
            "named": {"item_embedding": vectors},
        }[kind]
        path.write_bytes(pickle.dumps(value))
    assert torch.equal(read_item_vectors(path, 4), torch.cat([torch.zeros(1, 3), VECTORS]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [VECTORS, VECTORS.numpy(), np.asfortranarray(VECTORS.numpy()), VECTORS.numpy().astype(">f8"), VECTORS.bfloat16()],
    ids=["tensor", "array", "columns_first", "big_endian", "bfloat16"],
)
def test_pickles_of_any_protocol_are_read(value: Any, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol))
    assert torch.equal(read_item_vectors(tmp_path / "v.pkl", 4), torch.cat([torch.zeros(1, 3), VECTORS]))


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(DataError, match="only a pickled tensor"):
        read_item_vectors(tmp_path / "v.pkl", 4)
    assert not marker.exists()
    pickle.loads((tmp_path / "v.pkl").read_bytes())  # the file does what the test says
    assert marker.exists()


def test_a_shell_command_is_refused_unrun(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{marker}'",)

    (tmp_path / "v.pkl").write_bytes(pickle.dumps({"vectors": VECTORS, "more": Command()}))
    with pytest.raises(DataError, match=r"v\.pkl: only a pickled tensor .*\.system is not allowed"):
        read_item_vectors(tmp_path / "v.pkl", 4)
    assert not marker.exists()


def test_code_inside_a_tensors_storage_is_refused_unrun(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (pickle.dumps(Malicious(marker)),)

    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Storage()))
    with pytest.raises(DataError):
        read_item_vectors(tmp_path / "v.pkl", 4)
    assert not marker.exists()


def test_what_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"shape \(3, 2\); expected \(4, D\)"):
        read_item_vectors(tmp_path / "few.npy", 4)
    np.save(tmp_path / "nan.npy", np.array([[1.0], [np.nan], [1.0], [1.0]]))
    with pytest.raises(DataError, match="row 1 contains a value that is not finite"):
        read_item_vectors(tmp_path / "nan.npy", 4)
    save_file({"a": VECTORS, "b": VECTORS.clone()}, tmp_path / "two.safetensors")
    with pytest.raises(DataError, match="contains 2 tensors"):
        read_item_vectors(tmp_path / "two.safetensors", 4)
    (tmp_path / "v.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"\.npy, \.safetensors, \.pkl"):
        read_item_vectors(tmp_path / "v.bin", 4)
    with pytest.raises(DataError, match="no such file"):
        read_item_vectors(tmp_path / "none.npy", 4)
    (tmp_path / "word.pkl").write_bytes(pickle.dumps("word"))
    with pytest.raises(DataError, match="contains a str"):
        read_item_vectors(tmp_path / "word.pkl", 4)


@pytest.mark.parametrize("kind", [object, str, bool, complex])
def test_arrays_of_anything_but_numbers_are_refused(kind: type, tmp_path: Path) -> None:
    array = VECTORS.numpy().astype(kind)
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(array))
    with pytest.raises(DataError, match=r"v\.pkl: contains an array of .*expected numbers"):
        read_item_vectors(tmp_path / "v.pkl", 4)
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"v\.npy: (contains|not) an array of .*"):
        read_item_vectors(tmp_path / "v.npy", 4)


def test_another_byte_order_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS.numpy().astype(">f4"))
    assert torch.equal(read_item_vectors(tmp_path / "v.npy", 4)[1:], VECTORS)


@pytest.mark.parametrize("kept", [0, 1, 50, -40, -1])
def test_pickles_that_are_cut_off_are_refused(kept: int, tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(VECTORS)[:kept])
    with pytest.raises(DataError, match=r"v\.pkl: only a pickled tensor"):
        read_item_vectors(tmp_path / "v.pkl", 4)


def test_a_damaged_storage_is_refused(tmp_path: Path) -> None:
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    content = pickle.dumps(VECTORS)
    assert content.count(magic) == 1
    (tmp_path / "v.pkl").write_bytes(content.replace(magic, magic[::-1]))
    with pytest.raises(DataError, match=r"v\.pkl: only a pickled tensor"):
        read_item_vectors(tmp_path / "v.pkl", 4)


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def claimed_storage(number: int) -> bytes:
    """A pickle whose storage claims a number of values that it does not have."""
    content = pickle.dumps(torch.zeros(4, 3), 2)
    claim = number.to_bytes(4, "little")
    return content.replace(b"K\x0cN", b"J" + claim + b"N").replace(b"K\x0c", b"J" + claim)


BOMBS = {
    "a tensor that repeats one value": lambda: pickle.dumps(torch.zeros(1).expand(2**14, 2**18)),
    "an array by its shape": lambda: opcodes(b"cnumpy\nndarray\n", pickle.dumps(((2**31,),), 2)[2:-1], b"R"),
    "an index of a memo": lambda: opcodes(b"]", b"r" + (2**31 - 1).to_bytes(4, "little")),
    "bytes by their length": lambda: b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "a storage by its size": lambda: claimed_storage(2**31 - 1),
    "many operations": lambda: opcodes(b"]" + b"]0" * 20_000),
    "an encoding": lambda: opcodes(b"c_codecs\nencode\n", pickle.dumps(("x", "idna"), 2)[2:-1], b"R"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_pickle_takes_no_memory(case: str, tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(BOMBS[case]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"v\.pkl: (only a pickled tensor or array is loaded|contains a)") as caught:
        read_item_vectors(tmp_path / "v.pkl", 2**14)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("shape", ["(4, 1000000000000)", "(4000000000, 3)", "(4, -3)", "(10**9, 10**9)"])
def test_the_shape_of_an_array_is_compared_with_the_file(shape: str, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS.numpy())
    content = (tmp_path / "v.npy").read_bytes()
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "v.npy").write_bytes(content[:10] + text.encode() + content[128:])
    with pytest.raises(DataError, match=r"v\.npy: not an array of numbers"):
        read_item_vectors(tmp_path / "v.npy", 4)


def test_archives_and_pipes_are_no_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=VECTORS.numpy())
    (tmp_path / "v.npz").rename(tmp_path / "v.npy")
    with pytest.raises(DataError, match="not an array of numbers but an archive of several"):
        read_item_vectors(tmp_path / "v.npy", 4)
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match=r"pipe\.npy: is a named pipe, expected a file of item vectors"):
        read_item_vectors(tmp_path / "pipe.npy", 4)
