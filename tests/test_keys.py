"""Counter-based random numbers: determinism, independence, uniformity, and values that must never change."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ctfoundry.keys import Key

KEY = Key.of("test", 7)


def test_known_values():
    """A change here changes every recipe's random decisions: old runs could no longer be continued or repeated."""
    assert KEY.digest.hex() == "2f2d421f7556b7e3c74d05b5e49662d9"
    np.testing.assert_array_equal(KEY.uniform(shape=3), [0.15764119862314752, 0.17906098097172385, 0.5199127562200526])
    assert KEY.integers(-5, 100, 6).tolist() == [11, 13, 49, 26, 80, 49]
    np.testing.assert_allclose(
        KEY.normal(3), [-0.17716785586783224, 0.22956615806910344, -1.2055539651269083], rtol=1e-14
    )
    assert KEY.permutation(8).tolist() == [0, 1, 7, 3, 5, 2, 4, 6]
    assert KEY.seed() == 8204339414191642263


def test_uniform_is_numpys_philox():
    """The same words as numpy's own generator on the same key make: random() takes the top 53 bits too."""
    other = np.random.Generator(np.random.Philox(key=int.from_bytes(KEY.digest, "little"))).random(1000)
    np.testing.assert_array_equal(KEY.uniform(shape=1000), other)


def test_a_draw_depends_on_its_place_only():
    first = KEY("crop", 3).uniform(shape=5)
    KEY("crop", 4).uniform(shape=9)
    np.random.random(3)
    np.testing.assert_array_equal(KEY("crop", 3).uniform(shape=5), first)
    np.testing.assert_array_equal(KEY("crop", 3).uniform(shape=(5, 1))[:, 0], first)
    np.testing.assert_array_equal(KEY("crop", np.int64(3)).uniform(shape=5), first)


def test_another_process_draws_the_same():
    code = "from ctfoundry.keys import Key; print(Key.of('test', 7)('crop', 3).uniform().item().hex())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == float(KEY("crop", 3).uniform()).hex()


def test_names_do_not_collide():
    paths = [(), (1,), ("1",), (1, 2), (12,), ("1", 2), ("1, 2",), ("a", "b"), ("ab",), ("a", "", "b"), (-1,), (0,)]
    assert len({KEY(*p).digest for p in paths}) == len(paths)
    assert KEY("a")("b") != KEY("a", "b"), "one step of two names is another place than two steps"
    assert len({KEY(k).digest for k in range(10000)}) == 10000


def test_uniform_by_chi_square():
    """First numbers of 40,000 neighbouring keys, and 40,000 numbers of one key, fall evenly into 100 bins."""
    for numbers in (np.array([KEY("sample", k).uniform() for k in range(40000)]), KEY.uniform(shape=40000)):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_neighbouring_keys_are_independent():
    """Pairs (key k, key k+1) fill the unit square evenly, and parents tell nothing about children."""
    first = np.array([KEY(k).uniform() for k in range(20000)])
    child = np.array([KEY(k)("view", 0).uniform() for k in range(20000)])
    for a, b in ((first[:-1], first[1:]), (first, child)):
        counts = np.histogram2d(a, b, bins=10, range=((0, 1), (0, 1)))[0].ravel()
        assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_ranges():
    numbers = KEY.uniform(-2, 3, 10000)
    assert numbers.min() >= -2
    assert numbers.max() < 3
    whole = KEY.integers(-3, 4, 70000)
    assert sorted(set(whole.tolist())) == [-3, -2, -1, 0, 1, 2, 3]
    assert stats.chisquare(np.bincount(whole + 3)).pvalue > 1e-3
    assert KEY.integers(5, 6) == 5
    with pytest.raises(ValueError, match="empty range"):
        KEY.integers(3, 3)


def test_normal_and_permutation():
    assert stats.kstest(KEY.normal(40000), "norm").pvalue > 1e-3
    assert KEY.normal().shape == ()
    orders = np.array([KEY(k).permutation(6) for k in range(6000)])
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    for place in range(6):
        assert stats.chisquare(np.bincount(orders[:, place])).pvalue > 1e-3


def test_seeds_fit_63_bits_and_differ():
    seeds = {KEY(k).seed() for k in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
