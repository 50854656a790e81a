"""Clusters: checks of cluster files and nodes, submission of jobs, transfer of results."""
