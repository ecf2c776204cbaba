"""Files as ``torch.save`` writes them, put together opcode by opcode, since PyTorch is not there."""

import io
import zipfile

import numpy as np

TYPES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}
MACHINE = b"}(" + b"X\x0d\x00\x00\x00little_endian" + b"\x88u"


def text(value):
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def several(*items):
    return b"(" + b"".join(items) + b"t"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


ORDERED_DICT = named("collections", "OrderedDict") + b")R"


def storage(kind, key, count, *rest):
    """The persistent id of a storage; legacy files have None behind it."""
    kind = named("torch", f"{kind}Storage")
    return several(text("storage"), kind, text(key), text("cpu"), number(count), *rest) + b"Q"


def tensor(held, offset, size, stride):
    """A tensor in a storage."""
    sizes, strides = several(*map(number, size)), several(*map(number, stride))
    function = named("torch._utils", "_rebuild_tensor_v2")
    return function + several(held, number(offset), sizes, strides, b"\x89", ORDERED_DICT) + b"R"


def state_dict(entries):
    """The program of a state dict: from a name to the program of its value."""
    return ORDERED_DICT + b"(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def program(body):
    return b"\x80\x02" + body + b"."


def legacy(body, storages):
    """A legacy file of a program and the bytes of its storages by key, with the count of each."""
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    heads = [b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", b"M\xe9\x03", MACHINE]
    data = [count.to_bytes(8, "little") + numbers for count, numbers in storages.values()]
    return b"".join([*map(program, [*heads, body, keys]), *data])


def zipped(body, storages, **extra):
    """A zip archive of the same; more members by their names, or others in place of these."""
    members = {"data.pkl": program(body), "byteorder": b"little"}
    members |= {f"data/{key}": numbers for key, (_, numbers) in storages.items()} | extra
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def written(tensors, *, old):
    """A file of whole arrays by name."""
    entries, storages = {}, {}
    for n, (name, array) in enumerate(tensors.items()):
        held = storage(TYPES[array.dtype.name], str(n), array.size, *([b"N"] if old else []))
        strides = [step // array.itemsize for step in np.array(array, order="C").strides]
        entries[name] = tensor(held, 0, array.shape, strides)
        storages[str(n)] = (array.size, array.tobytes())
    return (legacy if old else zipped)(state_dict(entries), storages)
