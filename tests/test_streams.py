"""Streams: equal to numpy's SeedSequence bit for bit, whatever they are made with."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence, default_rng

from mpiens import streams as made
from mpiens.spec import Ensemble, Spec
from mpiens.streams import Stream, hash_name, spawn_key, state_words

quick = settings(max_examples=60, deadline=None, database=None)
entropies = st.one_of(st.integers(0, 2**33), st.integers(0, 2**200))
replicates = st.one_of(st.integers(0, 1000), st.integers(0, 2**70))
tasks = st.lists(st.tuples(st.text(max_size=9), replicates), max_size=8)


def sequence(entropy: int, name: str, replicate: int, common: bool) -> SeedSequence:
    """What the design promises, written with numpy and hashlib alone."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    own = () if common else (int.from_bytes(digest[:8], "little"),)
    return SeedSequence(entropy, spawn_key=(*own, replicate))


def make(
    entropy: int, names: list[str], replicates: Any, *, common: bool
) -> Iterator[Stream]:
    pairs = zip(names, replicates, strict=True)
    keys = [spawn_key(name, replicate, common=common) for name, replicate in pairs]
    return made.make(entropy, keys)


def one(entropy: int, name: str, replicate: int, *, common: bool) -> Stream:
    [stream] = make(entropy, [name], [replicate], common=common)
    return stream


def draws(rng: np.random.Generator) -> list[float]:
    return [*rng.random(5), *rng.normal(size=3), *rng.integers(9, size=3)]


@quick
@given(entropies, tasks, st.booleans())
def test_streams_are_numpys_bit_for_bit(
    entropy: int, tasks: list[tuple[str, int]], common: bool
) -> None:
    names, numbers = [t[0] for t in tasks], [t[1] for t in tasks]
    streams = list(make(entropy, names, numbers, common=common))
    assert len(streams) == len(tasks)
    for stream, (name, replicate) in zip(streams, tasks, strict=True):
        expected = sequence(entropy, name, replicate, common)
        assert np.array_equal(stream.generate_state(8), expected.generate_state(8))
        assert stream.seed == int(expected.generate_state(1)[0])
        assert type(stream.seed) is int
        known = stream.rng().bit_generator.state
        assert known == default_rng(expected).bit_generator.state


def test_common_streams_are_what_numpy_spawns() -> None:
    spawned = SeedSequence(20260529).spawn(300)
    streams = make(20260529, ["any"] * 300, range(300), common=True)
    for stream, child in zip(streams, spawned, strict=True):
        assert draws(stream.rng()) == draws(default_rng(child))


@quick
@given(st.text())
def test_a_name_is_hashed_as_documented(name: str) -> None:
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()
    little = bytes.fromhex(digest)[:8][::-1]
    assert hash_name(name) == int(little.hex(), 16)
    assert spawn_key(name, 3, common=False) == (hash_name(name), 3)
    assert spawn_key(name, 3, common=True) == (3,)


def test_scenarios_share_streams_only_under_common_pairing() -> None:
    names = ["baseline", "masks"]
    shared = make(1, names, [5, 5], common=True)
    own = make(1, names, [5, 5], common=False)
    assert len({stream.seed for stream in shared}) == 1
    assert len({stream.seed for stream in own}) == 2


@quick
@given(entropies, tasks, st.booleans(), st.randoms(use_true_random=False))
def test_neither_order_nor_company_changes_a_stream(
    entropy: int,
    tasks: list[tuple[str, int]],
    common: bool,
    random: Random,
) -> None:
    keys = [spawn_key(name, number, common=common) for name, number in tasks]
    order = list(range(len(keys)))
    random.shuffle(order)
    together = state_words(entropy, keys)
    shuffled = state_words(entropy, [keys[i] for i in order])
    assert together.shape == (len(keys), 8)
    for place, index in enumerate(order):
        assert np.array_equal(shuffled[place], together[index])
        assert np.array_equal(state_words(entropy, [keys[index]])[0], together[index])


@pytest.mark.parametrize("common", [True, False])
def test_spawned_generators_are_numpys(common: bool) -> None:
    ours = one(7, "masks", 3, common=common).rng()
    numpys = default_rng(sequence(7, "masks", 3, common))
    for _ in range(2):  # a second time goes on where the first has ended
        for child, expected in zip(ours.spawn(2), numpys.spawn(2), strict=True):
            assert draws(child) == draws(expected)
            [grandchild], [wanted] = child.spawn(1), expected.spawn(1)
            assert draws(grandchild) == draws(wanted)
    assert draws(ours) == draws(numpys)


def test_each_generator_begins_at_the_start_of_its_stream() -> None:
    stream = one(7, "masks", 3, common=True)
    first = stream.rng()
    expected = draws(first)
    first.spawn(2)
    assert draws(stream.rng()) == expected
    fresh = default_rng(sequence(7, "masks", 3, True)).spawn(1)
    assert draws(stream.rng().spawn(1)[0]) == draws(fresh[0])


@quick
@given(st.integers(0, 20), st.sampled_from([np.uint32, np.uint64]))
def test_a_stream_seeds_other_bit_generators_as_numpy_would(
    count: int, dtype: type
) -> None:
    ours = one(7, "masks", 3, common=False).rng().bit_generator.seed_seq
    expected = sequence(7, "masks", 3, False)
    words = ours.generate_state(count, dtype)
    assert words.dtype == dtype
    assert np.array_equal(words, expected.generate_state(count, dtype))


def test_other_bit_generators_can_be_seeded_by_a_stream() -> None:
    ours = one(7, "masks", 3, common=False).rng().bit_generator.seed_seq
    numpys = np.random.MT19937(sequence(7, "masks", 3, False))
    assert np.random.MT19937(ours).random_raw() == numpys.random_raw()


def test_a_generator_can_be_sent_to_a_process_of_the_model() -> None:
    rng = one(7, "masks", 3, common=False).rng()
    rng.random(3)
    sent = pickle.loads(pickle.dumps(rng))
    assert draws(sent) == draws(rng)
    assert draws(sent.spawn(1)[0]) == draws(rng.spawn(1)[0])


def test_numbers_of_numpy_are_replicates_too() -> None:
    keys = np.array([0, 1, 2**40], dtype=np.int64)
    streams = make(7, ["a"] * 3, keys, common=False)
    for stream, replicate in zip(streams, keys, strict=True):
        expected = sequence(7, "a", int(replicate), False)
        assert np.array_equal(stream.generate_state(8), expected.generate_state(8))


def make_spec(seed: int, names: list[str], replicates: int, pairing: Any) -> Spec:
    ensemble = Ensemble("model.py:f", replicates, seed, pairing)
    return Spec(ensemble, bases={name: {} for name in names})


@quick
@given(
    entropies,
    st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4, unique=True),
    st.integers(1, 50),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_streams_of_many_tasks_are_those_of_each(
    entropy: int, names: list[str], replicates: int, common: bool, dice: Random
) -> None:
    pairing = "common" if common else "independent"
    spec = make_spec(entropy, names, replicates, pairing)
    tasks = [*range(spec.tasks)]
    dice.shuffle(tasks)
    for task, stream in zip(tasks, made.of(spec, tasks), strict=True):
        scenario, replicate = divmod(task, replicates)
        expected = sequence(entropy, names[scenario], replicate, common)
        assert np.array_equal(stream.generate_state(8), expected.generate_state(8))
        assert stream.key == expected.spawn_key
        assert draws(stream.rng()) == draws(default_rng(expected))


def test_names_whose_hash_begins_with_zeros_are_as_numpy_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(made, "hash_name", {"a": 5, "b": 2**40 + 1}.__getitem__)
    spec = make_spec(7, ["a", "b"], 9, "independent")
    for task, stream in zip(range(18), made.of(spec, range(18)), strict=True):
        key = (5 if task < 9 else 2**40 + 1), task % 9
        expected = SeedSequence(7, spawn_key=key)
        assert np.array_equal(stream.generate_state(8), expected.generate_state(8))
