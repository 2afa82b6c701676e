"""The store: one folder a cell, content-addressed, safe with many writers on a shared file system.

`store` is the way in. `keys` says what a cell is, `code` digests a plugin's code, `record` and
`results` are what is written, `shelf` publishes and verifies folders, `partial` keeps training
state to resume from, `suites` what a suite refers to, `leftovers` what nothing refers to.
Nothing here imports PyTorch but the functions of `tensors`, when they are called.
"""

OUT_VARIABLE = "METABENCH_OUT"
"""The environment variable that names the result folder."""
DEFAULT_OUT = "metabench-results"
"""The result folder where nobody names one, in the current folder."""
