"""Score any predicted points against any true heads, by the paper's metric and by those of other benchmarks."""
