"""The exact density of states of the Ising model on a square lattice, and its heat.

B. Kaufman's partition function of the finite lattice (Phys. Rev. 76, 1232, 1949) is a
polynomial in x = exp(-2 / T) whose coefficients are the numbers of states.  P. D. Beale
expanded it (Phys. Rev. Lett. 76, 78, 1996).  His factors hold cosines, which are no
rational numbers; but in the integers modulo a suitable prime there are numbers that
have all properties of these cosines which the expansion uses.  With a prime above 2 to
the number of spins the coefficients are exact.
"""

from itertools import count
from math import comb, log

import numpy as np


def count_states(size):
    """Return g[k], the number of states of energy -2 N + 4 k, as exact integers.

    ``size`` is even.
    """
    prime, root = find_prime(size)
    half = pow(2, -1, prime)

    def times(*factors):
        product = [1]
        for factor in factors:
            product = multiply(product, factor, prime)
        return product

    def power(factor, exponent):
        return times(*[factor] * exponent)

    def add(*terms):
        length = max(map(len, terms))
        padded = [[*term, *[0] * (length - len(term))] for term in terms]
        return [sum(column) % prime for column in zip(*padded, strict=True)]

    def scale(factor, polynomial):
        return [factor * value % prime for value in polynomial]

    beta = [0, 2, 0, -2]  # 2 x (1 - x^2)

    def squares(k):
        """Return c_k^2 and s_k^2."""
        cosine = (pow(root, k, prime) + pow(root, -k, prime)) * half
        alpha = add([1, 0, 2, 0, 1], scale(-cosine, beta))
        apart = add(times(alpha, alpha), scale(-1, times(beta, beta)))
        both = [0]
        for j in range(size // 2 + 1):
            term = times(power(apart, j), power(alpha, size - 2 * j))
            both = add(both, scale(comb(size, 2 * j), term))
        both = scale(pow(half, size - 1, prime), both)
        rest = scale(pow(half, size - 1, prime), power(beta, size))
        return add(both, rest), add(both, scale(-1, rest))

    first, second = power([1, -1], size), power([0, 1, 1], size)
    third, fourth = power([1, 1], size), power([0, 1, -1], size)
    odd = [squares(k) for k in range(1, size, 2)]
    even = [squares(k) for k in range(2, size, 2)]
    total = add(
        times(*(c for c, _ in odd)),
        times(*(s for _, s in odd)),
        times(add(first, second), add(third, fourth), *(c for c, _ in even)),
        times(
            add(first, scale(-1, second)),
            add(third, scale(-1, fourth)),
            *(s for _, s in even),
        ),
    )
    return scale(half, total)[: 2 * size**2 + 1 : 2]


def find_prime(size):
    """Return a prime above 2^N, and a number of order 2 size modulo it."""
    order = 2 * size
    factors = count(2**size**2 // order + 1)
    factor = next(factor for factor in factors if is_prime(factor * order + 1))
    prime = factor * order + 1
    roots = (pow(base, factor, prime) for base in count(2))
    return prime, next(
        root
        for root in roots
        if all(pow(root, part, prime) != 1 for part in range(1, order))
    )


def is_prime(number):
    """Test it by the first bases of Miller and Rabin."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        power = pow(base, odd, number)
        if power == 1:
            continue
        if all(pow(power, 2**k, number) != number - 1 for k in range(twos)):
            return False
    return True


def multiply(first, second, prime):
    """Return the product of two polynomials, lowest power first."""
    product = [0] * (len(first) + len(second) - 1)
    for i, value in enumerate(first):
        if value:
            for j, other in enumerate(second):
                product[i + j] += value * other
    return [value % prime for value in product]


def log_density(size):
    """Return the energies that exist, and the logarithm of the number of states."""
    numbers = count_states(size)
    found = [(4 * k - 2 * size**2, log(g)) for k, g in enumerate(numbers) if g]
    energies, log_g = np.array(found).T
    return energies, log_g


def heat(energies, log_g, temperatures):
    """Return the mean energy and the heat capacity, (..., temperatures).

    ``log_g`` is (..., energies); its level does not matter.
    """
    exponent = log_g[..., None, :] - energies / np.asarray(temperatures)[:, None]
    weight = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    mean = (weight * energies).sum(axis=-1)
    square = (weight * (energies - mean[..., None]) ** 2).sum(axis=-1)
    return mean, square / np.asarray(temperatures) ** 2
