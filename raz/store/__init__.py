"""Artifacts, leases and checks of a store; the S3 tier behind it."""
