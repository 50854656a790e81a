"""What a run costs and in which order its trials begin."""
