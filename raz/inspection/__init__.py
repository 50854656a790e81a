"""Read-only views of studies, of a store's state and of this machine."""
