"""The cache of a teacher's log-probs: what its files hold, how exactly, and how it goes on."""

import numpy as np
import pytest

from posttrain_jax import teacher_cache
from posttrain_jax.api import Artifact
from posttrain_jax.data.pack import Rows
from posttrain_jax.files import read_json
from posttrain_jax.mesh import local_rows

COUNT, LENGTH, K = 7, 5, 3


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    mask = (rng.random((COUNT, LENGTH)) < 0.6).astype(np.float32)
    mask[4] = 0.0  # a row in which nothing bears loss
    return Rows(*(rng.integers(0, 9, (COUNT, LENGTH)).astype(np.int32) for _ in range(3)), mask)


@pytest.fixture
def expected():
    """(tokens, log-probs) [rows, T, K], the likeliest first."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 500, (COUNT, LENGTH, K)).astype(np.int32)
    logp = -np.sort(rng.exponential(4.0, (COUNT, LENGTH, K)), axis=-1).astype(np.float32)
    return tokens, logp


def write(folder, rows, expected, *parts):
    tokens, logp = expected
    for first, end in parts:
        here = slice(first, end)
        teacher_cache.write_part(folder, first, tokens[here], logp[here], rows.mask[here])


def merged(folder, rows, dtype="float32", vocab_size=500):
    mass = teacher_cache.merge(folder, rows, dtype, vocab_size, k=K, temperature=1.0)
    return mass, Artifact("kept", "teacher_logprobs", "a" * 64, folder)


def test_what_is_taken_is_what_was_written(small, tmp_path, rows, expected):
    write(tmp_path, rows, expected, (4, 7), (0, 2), (2, 4))
    mass, artifact = merged(tmp_path, rows)
    assert not list(tmp_path.glob("part-*"))
    here = rows.mask != 0
    for name, array in zip(("tokens", "logp"), expected, strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), array[here])
    by_row = [np.exp(e[h]).sum(axis=1).mean() for e, h in zip(expected[1], here, strict=True)
              if h.any()]  # fmt: skip
    assert mass == pytest.approx(by_row, abs=1e-6) and len(mass) == COUNT - 1
    for k in (0, 2):
        cache, taken = teacher_cache.open_cache(artifact, rows, k, 1.0)
        assert taken == (k or K)
        chosen = [6, 0, 4, 0]
        found = cache.take(small.mesh, chosen, taken, rows.mask[chosen])
        asked = here[chosen][..., None]
        for array, want in zip(found[:2], expected, strict=True):
            want = np.where(asked, want[chosen][..., :taken], 0)
            np.testing.assert_array_equal(local_rows(array), want)


def test_float16_is_as_exact_as_it_says(tmp_path, rows, expected):
    write(tmp_path, rows, expected, (0, COUNT))
    merged(tmp_path, rows, "float16", 1 << 17)
    stored, exact = np.load(tmp_path / "logp.npy"), expected[1][rows.mask != 0]
    assert stored.dtype == np.float16 and np.load(tmp_path / "tokens.npy").dtype == np.int32
    off = np.abs(stored.astype(np.float64) - exact)
    assert 0 < (off / np.abs(exact)).max() <= 2**-11
    assert np.abs(np.exp(np.float64(stored)) - np.exp(np.float64(exact))).max() < 1.8e-4


@pytest.mark.parametrize(
    ("parts", "missing"),
    [((), 0), (((2, 4),), 0), (((0, 2), (4, 6)), 2), (((0, 2), (0, 4), (2, 6)), 6),
     (((0, 4), (4, 7)), 7)],
)  # fmt: skip
def test_the_first_row_that_is_not_kept(tmp_path, rows, expected, parts, missing):
    write(tmp_path, rows, expected, *parts)
    (tmp_path / ".part-00000006-00000007.npz.11").write_bytes(b"half a file")
    assert teacher_cache.missing_row(tmp_path, rows) == missing


def test_a_kill_after_merging_loses_nothing(tmp_path, rows, expected):
    write(tmp_path, rows, expected, (0, COUNT))
    parts = {path.name: path.read_bytes() for path in tmp_path.glob("part-*")}
    mass, _ = merged(tmp_path, rows)
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    assert teacher_cache.missing_row(tmp_path, rows) == COUNT
    before = (tmp_path / "logp.npy").stat().st_mtime_ns
    assert merged(tmp_path, rows)[0] == mass
    assert (tmp_path / "logp.npy").stat().st_mtime_ns == before
    assert not list(tmp_path.glob("part-*"))


def test_other_rows_and_settings_are_refused(tmp_path, rows, expected):
    artifact = Artifact("kept", "teacher_logprobs", "a" * 64, tmp_path)
    with pytest.raises(ValueError, match="stage 'kept', kind 'teacher_logprobs'"):
        teacher_cache.open_cache(artifact, rows, 0, 1.0)
    write(tmp_path, rows, expected, (0, COUNT))
    _, artifact = merged(tmp_path, rows)
    turned = rows._replace(tokens=rows.tokens[::-1])
    masked = rows._replace(mask=1 - rows.mask)
    cut = Rows(*(x[:, :-1] for x in rows))
    for other in (turned, masked, cut):
        with pytest.raises(ValueError, match=r"'kept' are of other rows .* than this stage"):
            teacher_cache.open_cache(artifact, other, 0, 1.0)
    with pytest.raises(ValueError, match=r"temperature=2.0, but stage 'kept' kept .* at 1.0"):
        teacher_cache.open_cache(artifact, rows, 0, 2.0)
    with pytest.raises(ValueError, match="k=4, but stage 'kept' kept k=3 tokens a place"):
        teacher_cache.open_cache(artifact, rows, 4, 1.0)
    assert read_json(tmp_path / "teacher.json")["rows"] == teacher_cache.digest(rows)
