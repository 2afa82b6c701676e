"""Tables of a result folder, recomputed from the episodes of its cells.

`members` finds the cells of a suite, `rows` makes the rows of the table from them and ranks these,
`table` writes them as CSV and Markdown. Nothing here imports PyTorch.
"""
