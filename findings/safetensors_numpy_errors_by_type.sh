#!/usr/bin/env bash
# safetensors 0.8.0 with framework "np" raises another kind of error for each type that NumPy lacks, though the file is
# valid and its header names the types. Whether bfloat16 can be read depends on what else was imported.
# Seen: F8_E4M3 AttributeError; BF16 TypeError, until ml_dtypes is imported by anybody, then it is read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.5.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import struct

import safetensors


def write(name, dtype, size):
    header = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * size]}}).encode()
    with open(name, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + bytes(4 * size))


def read(name):
    with safetensors.safe_open(name, framework="np") as file:
        try:
            return str(file.get_tensor("w").dtype)
        except Exception as error:
            return type(error).__name__


write("f8.safetensors", "F8_E4M3", 1)
write("bf16.safetensors", "BF16", 2)
before = read("f8.safetensors"), read("bf16.safetensors")
import ml_dtypes  # noqa: E402, F401

after = read("f8.safetensors"), read("bf16.safetensors")
print("F8_E4M3, BF16:", *before, "; after `import ml_dtypes`:", *after)
assert before == ("AttributeError", "TypeError"), before
assert after[1] == "bfloat16", after
PYTHON
echo "as described"
