"""Cost of a run, and the order in which its trials and stages start."""
