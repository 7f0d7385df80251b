"""Where does randomness come from?

From one pure function. A random number of a run is named by (run seed, sample index, purpose) and by nothing else:
no hidden generator state, no worker, no device, no history. So a resumed run, a run with other workers and a run on
other devices draw the same numbers, and data order is a permutation that can be asked for any position.
"""

import hashlib

LARGEST_SEED = 2**63 - 1


def seed_for(run_seed: int, sample_index: int, purpose: str) -> int:
    """Hash (run_seed, sample_index, purpose) to a seed in [0, 2**63).

    sample_index counts samples from the start of the run (0-based); purpose is a word such as "noise" or "timestep", so
    that two uses of one sample never share their numbers.
    """
    digest = hashlib.blake2b(f"{run_seed}/{sample_index}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & LARGEST_SEED
