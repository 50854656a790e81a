"""What a person writes: search spaces, ablation tables, their checks."""
