"""The paper's method as pure functions and modules: arrays in, arrays out; no files, no configuration, no cluster.

Numbers in brackets, as in "(17)", are rows of our reading of the paper: the places where its text is open or
misprinted, each with the choice made here. One convention of coordinates everywhere (27): points are x, y in pixels,
pixel i covers [i, i + 1), its centre is i + 0.5, and a map is indexed (row, column).
"""
