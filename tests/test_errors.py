"""Errors have exit codes that tell their families apart, and hints that name what is near only."""

import t2im.errors
from t2im.errors import CANCELLED, T2IMError, nearest

KINDS = [kind for kind in vars(t2im.errors).values() if isinstance(kind, type) and issubclass(kind, T2IMError)]


def test_families_have_codes_of_their_own_and_their_members_share_them():
    families = {kind.__name__: kind.exit_code for kind in T2IMError.__subclasses__()}
    assert len(set(families.values())) == len(families) >= 5
    assert all(kind.exit_code not in (0, CANCELLED) for kind in KINDS)
    assert len(KINDS) > len(families) + 1  # members take the code of their family


def test_the_nearest_name_is_found_whatever_its_case_and_none_if_none_is_near():
    valid = ("DDIM", "euler", "euler_a")
    assert nearest("ddmi", valid) == ' (did you mean "DDIM"?)'
    assert nearest("euler_b", valid, count=2) == ' (did you mean "euler_a" or "euler"?)'
    assert nearest("heun", valid) == nearest("", valid) == nearest("x", ()) == ""
