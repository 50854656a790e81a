"""The stage tree: what is trained, inferred and computed, each once per key."""
