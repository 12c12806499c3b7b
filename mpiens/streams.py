"""The random stream of a task, rebuilt on any rank from the task's identity.

A stream is ``numpy.random.SeedSequence(entropy=seed, spawn_key=key)`` where the
key is ``(replicate,)`` under common pairing and ``(hash of the scenario's name,
replicate)`` under independent pairing; that of a scenario's step is ``(hash, 0, 1)``
where it prepares and ``(hash, 0, 2)`` where it aggregates.  Making one such sequence
costs numpy about 6 us; here the words of a whole range are made in one vectorised
step and are equal to numpy's bit for bit.

The algorithm is numpy's ``SeedSequence``, which follows M. E. O'Neill,
"Developing a seed_seq alternative" (2015).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

from mpiens.spec import Spec

Words = NDArray[np.uint32]
State = NDArray[np.uint64]

_POOL = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_STATE_WORDS = 8  # 4 words of 64 bits, what PCG64 asks for
_FEW = 8  # streams that are made sooner one by one
_WORD = 1 << 32
_Generator, _PCG64 = np.random.Generator, np.random.PCG64


def hash_name(name: str) -> int:
    """Return the first 8 bytes, little-endian, of the SHA-256 of a scenario's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def spawn_key(name: str, replicate: int, *, common: bool) -> tuple[int, ...]:
    """Return the spawn key that identifies the stream of one task."""
    return (replicate,) if common else (hash_name(name), replicate)


@dataclass(slots=True)
class _Family:
    """Streams of one seed, whose words were made together."""

    entropy: int
    key: Callable[[int], tuple[int, ...]]  # of one of them, by its index
    words: Words  # (stream, word)
    states: State  # the words in pairs

    def members(self) -> Iterator[Stream]:
        """Yield its streams."""
        return map(partial(Stream, self), range(len(self.words)))


class Stream(ISpawnableSeedSequence):
    """The stream of one task: ``seed`` for foreign generators, ``rng()`` for numpy.

    It is a seed sequence whose first words are known; the rest is asked of numpy.
    """

    __slots__ = ("_family", "_full", "_index")

    def __init__(self, family: _Family, index: int) -> None:
        self._family = family
        self._index = index

    @property
    def key(self) -> tuple[int, ...]:
        """The spawn key."""
        return self._family.key(self._index)

    @property
    def seed(self) -> int:
        """An integer below 2**32, equal to ``SeedSequence.generate_state(1)[0]``."""
        return int(self._family.words[self._index, 0])

    def rng(self) -> np.random.Generator:
        """Return a fresh ``default_rng`` at the start of this stream."""
        # one of its own, since sequences count what they spawn; numpy's stubs know only
        # its own kind of them
        known: Any = Stream(self._family, self._index)
        return _Generator(_PCG64(known))

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """Return words as numpy's sequence does."""
        if dtype is np.uint64 and n_words == _STATE_WORDS // 2:  # as PCG64 asks
            state: State = self._family.states[self._index]
            return state
        wanted = np.dtype(dtype)
        if wanted == np.uint64 and n_words * 2 <= _STATE_WORDS:
            return self._family.states[self._index, :n_words].copy()
        if wanted == np.uint32 and n_words <= _STATE_WORDS:
            return self._family.words[self._index, :n_words].copy()
        return self._sequence().generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[Any]:
        """Return sequences that follow from this one, as numpy's does."""
        return self._sequence().spawn(n_children)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is numpy's own sequence, and brings no family with it."""
        return _as_it_is, (self._sequence(),)

    def _sequence(self) -> np.random.SeedSequence:
        if not hasattr(self, "_full"):
            entropy = self._family.entropy
            self._full = np.random.SeedSequence(entropy, spawn_key=self.key)
        return self._full


def of(spec: Spec, numbers: Sequence[int]) -> Iterator[Stream]:
    """Yield the streams of tasks, or of scenarios' steps, by their numbers."""
    entropy = spec.ensemble.seed
    if len(numbers) < _FEW or max(numbers) >= spec.tasks or spec.replicates > _WORD:
        return make(entropy, [_key(spec, number) for number in numbers])
    return _of_many(spec, np.array(numbers, np.int64))


def make(entropy: int, keys: Sequence[tuple[int, ...]]) -> Iterator[Stream]:
    """Yield the streams with these spawn keys."""
    return _pair(entropy, keys.__getitem__, state_words(entropy, keys)).members()


def state_words(entropy: int, keys: Sequence[tuple[int, ...]]) -> Words:
    """Return ``SeedSequence(entropy, spawn_key=key).generate_state(8)`` for each key.

    Shape (keys, 8).  Keys that differ in length of words are handled in groups.
    """
    words = np.empty((len(keys), _STATE_WORDS), dtype=np.uint32)
    groups: dict[int, list[int]] = {}
    assembled = [[w for part in key for w in _split(part)] for key in keys]
    for index, key_words in enumerate(assembled):
        groups.setdefault(len(key_words), []).append(index)
    for indices in groups.values():
        own = np.array([assembled[index] for index in indices], dtype=np.uint32)
        words[indices] = _words(entropy, own.T)
    return words


def _of_many(spec: Spec, tasks: NDArray[np.int64]) -> Iterator[Stream]:
    """Yield the streams of tasks, whose keys are put together all at once."""
    scenarios, replicates = np.divmod(tasks, spec.replicates)
    met, which = np.unique(scenarios, return_inverse=True)
    names = [spec.scenarios[index].name for index in met.tolist()]
    heads = [spawn_key(name, 0, common=spec.common)[:-1] for name in names]
    split = [[w for part in head for w in _split(part)] for head in heads]
    words = np.empty((len(tasks), _STATE_WORDS), dtype=np.uint32)
    for length in set(map(len, split)):  # a hash may begin with zeros
        like = [own if len(own) == length else [0] * length for own in split]
        has = np.array([len(own) == length for own in split])[which]
        columns = np.empty((length + 1, int(has.sum())), dtype=np.uint32)
        columns[:-1] = np.array(like, np.uint32).reshape(len(met), length)[which[has]].T
        columns[-1] = replicates[has]
        words[has] = _words(spec.ensemble.seed, columns)

    def key(index: int) -> tuple[int, ...]:
        return (*heads[which[index]], int(replicates[index]))

    return _pair(spec.ensemble.seed, key, words).members()


def _pair(entropy: int, key: Callable[[int], tuple[int, ...]], words: Words) -> _Family:
    """Return the streams with these keys and words, numpy's 64-bit words made too."""
    # numpy joins word pairs lowest first, whatever the byte order
    low, high = words[:, 0::2], words[:, 1::2]
    states = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    return _Family(entropy, key, words, states)


def _words(entropy: int, key: Words) -> Words:
    """Return the state words (stream, word) of spawn keys (word, stream)."""
    pool, constant = _mix_entropy(entropy)
    for word in key:
        [begin, end], constant = _constants(constant, _MULT_A, _POOL)
        pool = _mix(pool, _scramble(word, begin, end))
    [begin, end], _ = _constants(_INIT_B, _MULT_B, _STATE_WORDS)
    drawn = _scramble(np.concatenate([pool] * (_STATE_WORDS // _POOL)), begin, end)
    return np.asarray(drawn.T)


def _key(spec: Spec, number: int) -> tuple[int, ...]:
    step, scenario = spec.step_of(number)
    name = spec.scenarios[scenario].name
    if step is None:
        return spawn_key(name, number % spec.replicates, common=spec.common)
    return hash_name(name), 0, 1 + step  # no task's key is that long


def _split(number: int) -> list[int]:
    """Cut a non-negative integer into 32-bit words, lowest first."""
    words = [number & 0xFFFFFFFF]
    while number := number >> 32:
        words.append(number & 0xFFFFFFFF)
    return words


@lru_cache(maxsize=16)
def _mix_entropy(entropy: int) -> tuple[Words, int]:
    """Mix a seed into a pool of four words; return it, and the constant that follows.

    All spawn keys of the seed begin with it.
    """
    run = _split(entropy)
    run += [0] * (_POOL - len(run))  # numpy pads before a spawn key
    constant = _INIT_A

    def scramble(word: Words) -> Words:
        nonlocal constant
        [begin, end], constant = _constants(constant, _MULT_A, 1)
        return _scramble(word, begin, end)

    words = np.array(run, dtype=np.uint32)[:, None, None]
    pool = [scramble(word) for word in words[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _mix(pool[target], scramble(pool[source]))
    for word in words[_POOL:]:
        for target in range(_POOL):
            pool[target] = _mix(pool[target], scramble(word))
    return np.concatenate(pool), constant


@lru_cache(maxsize=64)
def _constants(first: int, multiplier: int, count: int) -> tuple[Words, int]:
    """Return so many pairs of constants of numpy's running hash, and what follows.

    Shape (2, count, 1).  They do not depend on what is hashed.
    """
    run = [first]
    for _ in range(count):
        run.append(run[-1] * multiplier & 0xFFFFFFFF)
    pairs = np.array([run[:-1], run[1:]], dtype=np.uint32)[:, :, None]
    return pairs, run[-1]


def _scramble(words: Words, begin: Words, end: Words) -> Words:
    mixed: Words = words ^ begin
    mixed *= end
    mixed ^= mixed >> _SHIFT
    return mixed


def _mix(x: Words, y: Words) -> Words:
    mixed: Words = x * _MIX_L - y * _MIX_R
    mixed ^= mixed >> _SHIFT
    return mixed


def _as_it_is(sequence: np.random.SeedSequence) -> np.random.SeedSequence:
    return sequence
