"""Studies: the journal of trials, samplers, pruners, and readers of a study."""
