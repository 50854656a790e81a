"""Studies: Optuna's journal of trials, its samplers and pruners, and how a study is read."""
