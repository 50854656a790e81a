"""The paper's method as pure functions and modules: arrays in, arrays out; no files, no configuration, no cluster.

Numbers in parentheses, as in "(17)", are rows of docs/reading-of-the-paper.md: places where the paper is ambiguous or
misprinted, each with the choice made here. Coordinates (27): points are (x, y) in pixels, pixel i covers [i, i + 1) and
has its centre at i + 0.5, and maps are indexed (row, column).
"""
