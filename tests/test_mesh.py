"""The mesh on one device: axis tables, errors that name the nearest sizes, rows there and back.

What needs more devices is in test_eight_devices.py.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from posttrain_jax import mesh as meshes


def fake(**sizes):
    """As much of a mesh as the checks look at."""
    return SimpleNamespace(shape={axis: sizes.get(axis, 1) for axis in meshes.AXES})


def test_a_mesh_has_all_axes_and_fsdp_takes_what_is_left():
    mesh = meshes.make_mesh({"tensor": 1})
    assert tuple(mesh.shape) == meshes.AXES
    assert mesh.size == mesh.shape["fsdp"] == jax.device_count()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model": 2}, r"unknown mesh axes \['model'\].*'tensor'"),
        ({"tensor": 3}, "'tensor': 3.* does not fit 8 devices"),
        ({"fsdp": 4}, "'fsdp': 4.* does not fit 8 devices"),
        ({"tensor": -1}, "at most one -1"),
        ({"tensor": 0}, "'tensor': 0.* does not fit 8 devices"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(sizes, devices=list(range(8)))


def test_logical_axes_become_mesh_axes():
    assert meshes.spec("batch", None, "ffn") == PartitionSpec(
        ("data", "fsdp", "expert"), None, "tensor"
    )
    with pytest.raises(KeyError, match="width"):
        meshes.spec("width")
    axes = {"a": ("embed", "heads"), "b": ("norm",), "c": ()}
    found = meshes.shardings(meshes.make_mesh(), axes)
    assert jax.tree.map(lambda s: s.spec, found) == {
        "a": PartitionSpec("fsdp", "tensor"),
        "b": PartitionSpec(None),
        "c": PartitionSpec(),
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (7, "batch_size=7 .* = 6 .*nearest that do: 6 or 12"),
        (5, "batch_size=5 .*nearest that do: 6$"),
        (13, "12 or 18"),
    ],
)
def test_a_batch_that_does_not_divide(size, message):
    with pytest.raises(ValueError, match=message):
        meshes.check_batch(fake(data=2, fsdp=3), "batch_size", size)
    meshes.check_batch(fake(data=2, fsdp=3), "batch_size", 12)


def test_parameters_that_do_not_divide():
    axes = {"layers": {"q": ("layers", "embed", "heads", "head_dim")}, "norm": ("norm",)}
    shapes = {"layers": {"q": np.zeros((2, 16, 6, 8))}, "norm": np.zeros(7)}
    meshes.check_divides(fake(fsdp=8, tensor=3), axes, shapes)
    message = r"\['q'\]: heads is 6, .*'tensor' of size 4 .*: \[1, 2, 3\] \(config.mesh.tensor\)"
    with pytest.raises(ValueError, match=message):
        meshes.check_divides(fake(tensor=4), axes, shapes)
    with pytest.raises(ValueError, match=r"embed is 16.*'fsdp' of size 5.*\[1, 2, 4\]"):
        meshes.check_divides(fake(fsdp=5), axes, shapes)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2)])
def test_rows_go_onto_the_mesh_and_come_back(shape):
    mesh = meshes.make_mesh()
    rows = np.arange(np.prod(shape)).reshape(shape)
    asked = []
    placed = meshes.host_batch(mesh, shape, lambda index: (asked.append(index), rows[index])[1])
    assert len(asked) == jax.device_count()
    np.testing.assert_array_equal(placed, rows)
    np.testing.assert_array_equal(meshes.local_rows(placed), rows)
    np.testing.assert_array_equal(rows[meshes.local_slice(placed)], rows)
    again = meshes.from_local_rows(mesh, rows)
    assert again.sharding == placed.sharding
    np.testing.assert_array_equal(meshes.all_rows(mesh, meshes.local_rows(again)), rows)


def test_constrain_does_nothing_without_a_mesh():
    x = np.ones((2, 3))
    assert meshes.constrain(x, "batch", None) is x
