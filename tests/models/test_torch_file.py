"""Files of PyTorch: every number at its place, and nothing that is executed.

``torch_zip.pth`` and ``torch_legacy.pth`` were written by torch 2.13.0 (CPU):

    base = torch.arange(60.0).reshape(3, 4, 5)
    state = torch.nn.BatchNorm1d(2).state_dict()
    state |= {
        "base": base, "offset": base[1:, ::2], "turned": base.permute(2, 0, 1), "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3), "half": torch.tensor([1.5, -2]).half(), "brain": torch.tensor([1.5, -2]).bfloat16(),
        "double": torch.tensor([1.5, -2]).double(),
    }
    torch.save(state, FILE, _use_new_zipfile_serialization=ZIP)
"""

import os
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.errors import UserError
from jaxad.models import torch_file
from tests.models.torch_files import (
    ORDERED_DICT,
    legacy,
    named,
    number,
    program,
    several,
    state_dict,
    storage,
    tensor,
    text,
    written,
    zipped,
)
from tests.refusals import refuses

GOLDEN = Path(__file__).parent
SIX = {"0": (6, np.arange(6, dtype=np.float32).tobytes())}


def saved(tmp_path, content):
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    return path


def container(kind, body, storages):
    return legacy(body, storages) if kind == "legacy" else zipped(body, storages)


@pytest.fixture(params=["legacy", "zip"])
def kind(request):
    return request.param


# Every number at its place


def test_what_torch_has_written(kind):
    base = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    few = np.asarray([1.5, -2])
    expected = {
        "weight": np.ones(2, np.float32), "bias": np.zeros(2, np.float32), "running_mean": np.zeros(2, np.float32),
        "running_var": np.ones(2, np.float32), "num_batches_tracked": np.int64(0), "base": base,
        "offset": base[1:, ::2], "turned": base.transpose(2, 0, 1), "scalar": np.int64(7),
        "empty": np.zeros((0, 3), np.float32), "half": few.astype(np.float16), "brain": few.astype(jnp.bfloat16),
        "double": few,
    }  # fmt: skip
    found = torch_file.read(GOLDEN / f"torch_{kind}.pth")
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_offset_and_strides_by_hand(tmp_path, kind):
    """Of 0 to 5, from the second on, columns of two: [[1, 3, 5], [2, 4, 6]] would need a seventh number."""
    held = storage("Float", "0", 6)
    path = saved(tmp_path, container(kind, state_dict({"a": tensor(held, 1, (2, 2), (1, 2))}), SIX))
    np.testing.assert_array_equal(torch_file.read(path)["a"], [[1, 3], [2, 4]])
    path = saved(tmp_path, container(kind, state_dict({"a": tensor(held, 1, (2, 3), (1, 2))}), SIX))
    with refuses(path, "does not fit its 6 numbers"):
        torch_file.read(path)


def test_a_file_of_torch_is_known_by_its_start(tmp_path, kind):
    assert torch_file.is_torch_file(GOLDEN / f"torch_{kind}.pth")
    assert not torch_file.is_torch_file(saved(tmp_path, b"\x80\x01\0\0\0\0\0\0{" + b" " * 400)), "safetensors"
    assert not torch_file.is_torch_file(saved(tmp_path, b""))


# Refusals

WHOLE = tensor(storage("Float", "0", 6), 0, (6,), (1,))
REFUSED = {
    "another function": (named("os", "getcwd") + b")R", "'os.getcwd'"),
    "a builtin": (named("builtins", "getattr"), "'builtins.getattr'"),
    "a function of torch": (named("torch._utils", "_rebuild_parameter"), "'torch._utils._rebuild_parameter'"),
    "a storage of quantized numbers": (storage("QInt8", "0", 6), "'torch.QInt8Storage'"),
    "a global by protocol 4": (text("os") + text("getcwd") + b"\x93", "STACK_GLOBAL"),
    "another protocol": (b"\x80\x04" + state_dict({"a": WHOLE}), "PROTO (4)"),
    "an instance": (b"(ios\ngetcwd\n", "INST"),
    "an object": (b"(" + ORDERED_DICT + b"o", "OBJ"),
    "a new object": (ORDERED_DICT + b")\x81", "NEWOBJ"),
    "an extension": (b"\x82\x01", "EXT1 (1)"),
    "a persistent id in text": (b"Pstorage\n", "PERSID"),
    "a float": (b"G" + bytes(8), "BINFLOAT"),
    "bytes": (b"C\x01a", "SHORT_BINBYTES"),
    "a set": (b"\x8f", "EMPTY_SET"),
    "a dict of arguments": (named("collections", "OrderedDict") + b"(]tR", "collections.OrderedDict with unknown"),
    "a tensor of other arguments": (
        named("torch._utils", "_rebuild_tensor_v2") + several(number(1)) + b"R", "_rebuild_tensor_v2 with unknown"
    ),
    "a call of a text": (text("collections OrderedDict") + b"\x85)R", "what is no function"),
    "a part of a storage": (
        storage("Float", "0", 6, several(text("0"), number(1), number(2))), "names no whole storage"
    ),
    "another persistent id": (text("module") + b"Q", "names no whole storage"),
    "a number": (number(1), "no dict"),
    "an entry that is no tensor": (state_dict({"a": WHOLE, "epoch": number(3)}), "'epoch'"),
    "a nested dict": (state_dict({"state_dict": state_dict({"a": WHOLE})}), "'state_dict'"),
    "repeated numbers": (state_dict({"a": tensor(storage("Float", "0", 6), 0, (9, 9), (0, 0))}), "81 elements"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "word"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_tensor_is_named(tmp_path, kind, body, word):
    path = saved(tmp_path, container(kind, body, SIX))
    with refuses(path, word) as caught:
        torch_file.read(path)
    assert "nothing else than a state dict of plain tensors is read" in str(caught.value)


def test_nothing_is_executed(tmp_path, kind):
    """The program that a pickle of ``os.mkdir`` is makes no folder."""
    made = tmp_path / "made"
    path = saved(tmp_path, container(kind, named("os", "mkdir") + text(str(made)) + b"\x85R", SIX))
    with refuses(path, "'os.mkdir'"):
        torch_file.read(path)
    assert not made.exists() and os.listdir(tmp_path) == ["file.pth"]


def test_text_that_would_fill_any_memory_is_not_made(tmp_path):
    """Forty pairs, each of the one before twice: the text of the last has a million million parentheses."""
    pairs = text("a") + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(40))
    for body in (pairs + b"Q", pairs + b")R", named("collections", "OrderedDict") + pairs + b"R", pairs):
        with refuses(saved(tmp_path, zipped(body, SIX)), "nothing else than a state dict"):
            torch_file.read(tmp_path / "file.pth")


def test_compressed_numbers_are_refused(tmp_path):
    """They could be a thousand times as large as the file."""
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(state_dict({})))
    with refuses(path, "compressed"):
        torch_file.read(path)


def test_numbers_of_big_endian_machines_are_refused(tmp_path):
    body = state_dict({"a": WHOLE})
    old = legacy(body, SIX).replace(b"little_endian\x88", b"little_endian\x89")
    for content in (old, zipped(body, SIX, byteorder=b"big")):
        with refuses(saved(tmp_path, content), "big-endian"):
            torch_file.read(tmp_path / "file.pth")


# Damage


def test_a_file_that_ends_early(tmp_path, kind):
    """Wherever it is cut, one sentence."""
    content = container(kind, state_dict({"a": WHOLE}), SIX)
    for size in (*range(4, len(content), 7), len(content) - 1):
        path = saved(tmp_path, content[:size])
        with refuses(path, "is damaged ("):
            torch_file.read(path)


def test_changed_bytes_give_one_sentence_or_numbers(tmp_path, kind):
    content, rng = (GOLDEN / f"torch_{kind}.pth").read_bytes(), np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(changed))] = rng.integers(256)
        path = saved(tmp_path, bytes(changed))
        try:
            torch_file.read(path)
        except UserError as error:
            refusals += 1
            assert error.about == str(path) and "\n" not in str(error)
    assert refusals > 30


DAMAGED = {
    "fewer numbers": (state_dict({"a": WHOLE}), {"0": (6, bytes(20))}),
    "more numbers": (state_dict({"a": WHOLE}), {"0": (6, bytes(28))}),
    "no storage": (state_dict({"a": WHOLE}), {}),
    "two counts of one storage": (
        state_dict({"a": WHOLE, "b": tensor(storage("Float", "0", 5), 0, (5,), (1,))}), SIX
    ),
    "a negative count": (state_dict({"a": tensor(storage("Float", "0", -6), 0, (6,), (1,))}), SIX),
    "a negative offset": (state_dict({"a": tensor(storage("Float", "0", 6), -1, (6,), (1,))}), SIX),
    "a negative stride": (state_dict({"a": tensor(storage("Float", "0", 6), 5, (6,), (-1,))}), SIX),
    "a negative size": (state_dict({"a": tensor(storage("Float", "0", 6), 0, (-6,), (1,))}), SIX),
    "one number too many": (state_dict({"a": tensor(storage("Float", "0", 6), 1, (6,), (1,))}), SIX),
    "items of no dict": (b"](" + text("a") + WHOLE + b"u", SIX),
    "a name that is none": (ORDERED_DICT + number(1) + WHOLE + b"s", SIX),
    "a name without a value": (ORDERED_DICT + b"(" + text("a") + b"u", SIX),
    "values of no list": (ORDERED_DICT + b"(" + WHOLE + b"e", SIX),
    "what was not stored": (b"h\x07", SIX),
    "an empty stack": (b"\x85", SIX),
    "no mark": (b"t", SIX),
    "no text": (b"X\x02\x00\x00\x00\xff\xff", SIX),
}  # fmt: skip


@pytest.mark.parametrize(("body", "storages"), DAMAGED.values(), ids=DAMAGED)
def test_what_does_not_agree(tmp_path, kind, body, storages):
    path = saved(tmp_path, container(kind, body, storages))
    with refuses(path, "is damaged (") as caught:
        torch_file.read(path)
    assert str(caught.value).endswith("; fetch it again")


def test_archives_that_are_none_of_torch(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with refuses(tmp_path / "a.npz", "has no data.pkl"):
        torch_file.read(tmp_path / "a.npz")
    with refuses(saved(tmp_path, program(number(1))), "does not start with the numbers of torch.save"):
        torch_file.read(tmp_path / "file.pth")
    content = written({"a": np.ones(2, np.float32)}, old=True)
    with refuses(saved(tmp_path, content + b"0"), "and it has"):
        torch_file.read(tmp_path / "file.pth")
