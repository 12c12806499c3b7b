"""Shared data: what a loader returns, split for a window and rebuilt from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens.fault import SpecError
from mpiens.reader import decode
from mpiens.window import Shared, load_packed, pack

LAYOUTS = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "transposed": lambda array: array.T,
    "every second": lambda array: array[::2],
    "reversed": lambda array: array[..., ::-1],
    "last axis cut": lambda array: array[..., 1:],
    "repeated": lambda array: np.broadcast_to(array, (2, *array.shape)),
}
DTYPES = ("f8", "f4", "i8", "i2", "u1", "?", "c16", "S3", ">f8", "i4,f8")


@dataclass
class Town:
    """As a loader defines one beside the model."""

    name: str
    people: np.ndarray
    roads: dict[str, np.ndarray] = field(default_factory=dict)


def place(value: Any) -> tuple[Shared, np.ndarray]:
    """Return the shared data and the window, filled as the design says: 64 by 64."""
    packed = pack(value)
    window = bytearray(packed.nbytes)
    start = 0
    for buffer in packed.buffers:
        window[start : start + len(buffer)] = buffer
        start += (len(buffer) + 63) // 64 * 64
    assert start == len(window)
    sizes = tuple(len(buffer) for buffer in packed.buffers)
    shared = Shared(packed.skeleton, sizes, memoryview(window))
    return shared, np.frombuffer(window, np.uint8)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.arange(draw(st.integers(0, 200)), count + 200) % 2  # booleans too
    array = np.frombuffer(data.astype(np.uint8).tobytes()[:count], dtype)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](array.reshape(shape))


@given(st.lists(arrays(), max_size=5), st.text(max_size=9))
@settings(deadline=None, max_examples=150)
def test_any_arrays_come_back_as_read_only_views_on_the_window(
    given_arrays: list[np.ndarray], name: str
) -> None:
    shared, window = place({name: Town(name, np.arange(3), {}), "all": given_arrays})
    back = shared()
    assert back[name] == Town(name, back[name].people, {})
    for before, after in zip(given_arrays, back["all"], strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)
        assert not after.flags.writeable
        if after.size:
            offset = after.__array_interface__["data"][0] - window.ctypes.data
            assert offset % 64 == 0
            assert 0 <= offset <= len(window) - after.nbytes


def test_dataclasses_in_dicts_in_lists_come_back() -> None:
    roads = {
        "north": np.eye(3, order="F"),
        "none": np.zeros((0, 4)),
        "one": np.ones(()),
    }
    shared, window = place([{"towns": (Town("a", np.arange(7), roads),), 3: None}])
    [back] = shared()
    [town] = back["towns"]
    assert (type(town), town.name, back[3]) == (Town, "a", None)
    np.testing.assert_array_equal(town.people, np.arange(7))
    assert town.roads.keys() == roads.keys()
    for name, road in roads.items():
        np.testing.assert_array_equal(town.roads[name], road)
        assert town.roads[name].shape == road.shape
        assert not road.size or np.shares_memory(town.roads[name], window)
    assert town.roads["north"].flags.f_contiguous


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_of_arrays_are_in_the_window_and_not_in_the_skeleton(layout: str) -> None:
    array = LAYOUTS[layout](np.ones((500, 400)))
    packed = pack({"contacts": [array, Town("a", array)]})
    assert len(packed.skeleton) < 1000
    assert array.nbytes <= packed.nbytes < array.nbytes + 64  # once, though named twice


@given(st.lists(st.integers(0, 300), max_size=12))
@settings(deadline=None, max_examples=100)
def test_the_window_has_room_for_alignment_and_no_more(sizes: list[int]) -> None:
    packed = pack([np.zeros(size, np.uint8) for size in sizes])
    assert packed.nbytes == sum(-(-size // 64) * 64 for size in sizes)


def test_writing_to_shared_data_is_refused() -> None:
    shared, window = place({"contacts": np.arange(5.0)})
    before = window.copy()
    contacts = shared()["contacts"]
    with pytest.raises(ValueError, match="read-only"):
        contacts[0] = 1
    with pytest.raises(ValueError, match="output array is read-only"):
        contacts += 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        contacts.flags.writeable = True
    np.testing.assert_array_equal(window, before)


def test_every_rank_builds_the_same_from_one_window() -> None:
    shared, window = place(Town("a", np.arange(100)))
    one, two = shared(), shared()
    assert one is not two
    assert np.shares_memory(one.people, two.people)
    assert np.shares_memory(one.people, window)


def test_data_frames_come_back_with_their_numbers_in_the_window() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "age": np.arange(2000),
            "weight": np.linspace(0, 1, 2000),
            "town": pd.Categorical(["a", "b"] * 1000),
        },
        index=pd.Index(np.arange(2000) * 3, name="person"),
    )
    packed = pack(frame)
    assert len(packed.skeleton) < 2000
    shared, window = place(frame)
    back = shared()
    pd.testing.assert_frame_equal(back, frame)
    for column in ("age", "weight"):
        assert np.shares_memory(back[column].to_numpy(), window)
        assert not back[column].to_numpy().flags.writeable


@pytest.mark.parametrize("kind", ["M8[D]", "m8[ns]"])
def test_dates_lie_in_the_window_too(kind: str) -> None:
    dates = np.arange(2000).astype(kind)
    packed = pack(dates)
    assert len(packed.skeleton) < 1000
    shared, window = place(dates)
    assert shared().dtype == dates.dtype
    np.testing.assert_array_equal(shared(), dates)
    assert np.shares_memory(shared(), window)
    assert not shared().flags.writeable


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
def test_sparse_matrices_come_back_with_their_arrays_in_the_window(form: str) -> None:
    import scipy.sparse

    matrix = scipy.sparse.random(400, 300, 0.1, format=form, rng=7)
    packed = pack(matrix)
    assert len(packed.skeleton) < 2000
    shared, window = place(matrix)
    back = shared()
    assert back.format == form
    np.testing.assert_array_equal(back.toarray(), matrix.toarray())
    np.testing.assert_array_equal(back @ np.arange(300), matrix @ np.arange(300))
    assert np.shares_memory(back.data, window)
    with pytest.raises(ValueError, match="read-only"):
        back.data[0] = 1


def test_what_has_no_arrays_needs_no_window() -> None:
    value = {"town": ["a", b"b", 3, 2.5, None], "empty": np.zeros((3, 0))}
    shared, window = place(value)
    assert len(window) == 0
    back = shared()
    assert back["town"] == value["town"]
    assert back["empty"].shape == (3, 0)


def test_arrays_of_python_objects_come_back() -> None:
    value = np.array([{"a": 1}, None, "text"], dtype=object)
    shared, _ = place(value)
    assert shared().tolist() == value.tolist()


def test_a_file_that_is_mapped_stays_so_where_it_may(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "f.npy", np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    names = ("a.npy", "f.npy")
    value = [np.load(tmp_path / name, mmap_mode="r") for name in names]
    packed = pack([*value, value[0][1:], np.ones(2)], mapped=True)
    assert [len(buffer) for buffer in packed.buffers] == [64, 16]  # a part is no file
    assert packed.maps == {str(tmp_path / n): 96 + 128 for n in names}
    assert len(pack(value).buffers) == 2  # unless asked for, all is in the window


SPEC = """
[ensemble]
model = "m.py:simulate"
replicates = 1
seed = 1
[shared]
loader = "m.py:load"
mapped = true
"""
LOAD = """
import numpy as np
def load():
    return {"all": np.load(PATH, mmap_mode="r")BODY}
def simulate(shared):
    return {"x": shared["all"].sum()}
"""


def test_a_mapped_file_is_read_by_who_is_handed_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5.0))
    text = LOAD.replace("PATH", repr(str(tmp_path / "a.npy"))).replace("BODY", "")
    (tmp_path / "m.py").write_text(text)
    spec = decode(SPEC, f"{tmp_path}/s.toml").require()
    packed = load_packed(spec)
    assert packed.buffers == []
    shared = Shared(packed.skeleton, (), memoryview(b""))
    found = shared()["all"]
    assert found.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    np.load(tmp_path / "a.npy", mmap_mode="r+")[:] += 1  # nothing was copied
    assert not shared()["all"].flags.writeable
    assert shared()["all"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_who_maps_nothing_and_says_so_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5.0))
    text = LOAD.replace("PATH", repr(str(tmp_path / "a.npy"))).replace(
        "BODY", "[:] + 1"
    )
    (tmp_path / "m.py").write_text(text)
    spec = decode(SPEC, f"{tmp_path}/s.toml").require()
    with pytest.raises(SpecError, match="maps no file, and mapped says that it does"):
        load_packed(spec)
