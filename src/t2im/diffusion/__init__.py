"""Noise in, noise out: schedule, objective, guidance and the reverse loop. Knows no network."""
