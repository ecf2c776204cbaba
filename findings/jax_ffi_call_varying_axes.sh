#!/usr/bin/env bash
# In JAX 0.10.2 and 0.12.0.1, foreign calls (jax.ffi.ffi_call) and callbacks (jax.pure_callback) inside jax.shard_map
# forget that their arguments differ between the devices: the type of the result says that it is the same on all. So
# shard_map, with its check on, takes such a result for replicated and returns one device's part as the whole. Stating
# the axes with the result's shape is refused by a bare AssertionError.
# Seen: "varying: x frozenset({'i'}), callback frozenset(), foreign call frozenset()".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
XLA_FLAGS=--xla_force_host_platform_device_count=2 JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

seen = {}


def varying(array):
    return jax.typeof(array).manual_axis_type.varying


def by_foreign_call(x):
    """Nothing is run here, so the target need not exist: the type is what tracing gives it."""
    y = jax.ffi.ffi_call("any_target", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
    seen["x"], seen["foreign call"] = varying(x), varying(y)
    return y


def by_callback(x):
    y = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    seen["callback"] = varying(y)
    return y


def stated(x):
    kind = jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
    return jax.ffi.ffi_call("any_target", kind)(x)


mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
split, x = PartitionSpec("i"), jnp.arange(4.0)


def trace(function, out_specs):
    return jax.make_jaxpr(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=out_specs))(x)


trace(by_foreign_call, PartitionSpec())  # as if both devices had the same: not refused
trace(by_callback, PartitionSpec())
print(f"varying: x {seen['x']}, callback {seen['callback']}, foreign call {seen['foreign call']}")
assert seen == {"x": {"i"}, "callback": set(), "foreign call": set()}, "the types have changed"
try:
    trace(stated, split)
except AssertionError as error:
    print("stated:", repr(error)[:60])
else:
    raise SystemExit("the axes can be stated now")
PYTHON
echo "as described"
