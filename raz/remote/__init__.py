"""Clusters: what their files say, and what is sent to them and fetched from them."""
