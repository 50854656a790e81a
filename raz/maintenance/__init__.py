"""Garbage collection, export, import and pull of a store."""
