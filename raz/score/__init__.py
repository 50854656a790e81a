"""Anybody's points against anybody's heads, under the paper's metric and under those that other benchmarks use."""
