"""Every draw has a seed of its own, and the same one for ever."""

from t2im.seeds import LARGEST_SEED, seed_for


def test_seeds_are_the_same_on_every_machine_and_in_every_version():
    assert seed_for(0, 0, "noise") == 260412297375949762
    assert seed_for(7, 12345, "timestep") == 6243207495736855671


def test_no_two_uses_share_a_seed():
    uses = [
        (run, sample, purpose) for run in range(13) for sample in range(13) for purpose in ("noise", "flip", "1/noise")
    ]
    seeds = {seed_for(*use) for use in uses}
    assert len(seeds) == len(uses) and all(0 <= seed <= LARGEST_SEED for seed in seeds)


def test_seeds_are_spread_evenly():
    bits = [seed_for(0, sample, "noise") for sample in range(2000)]
    for bit in range(63):
        assert abs(sum(seed >> bit & 1 for seed in bits) / 2000 - 0.5) < 0.06
