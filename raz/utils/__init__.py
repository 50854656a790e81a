"""Helpers that are independent of crowd counting."""
