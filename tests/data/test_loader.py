"""Seeds of batches."""

from itertools import product

from shapespace.data.loader import derive_seed


def test_seeds_are_those_of_their_numbers_and_differ() -> None:
    assert derive_seed(0, 1, 2) == 4066139880823384728  # in every process, on every machine
    seeds = [derive_seed(*key) for key in product(range(10), repeat=3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds)
