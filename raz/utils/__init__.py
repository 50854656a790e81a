"""Small helpers that know nothing of crowds."""
