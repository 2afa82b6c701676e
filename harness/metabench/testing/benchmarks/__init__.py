"""The benchmark suite: pytest-benchmark tests over whatever is registered.

`suite` holds the tests, `subjects` what they time, `asked` which of it; `launch` runs them without
a checkout (`metabench bench`), `hooks` is what pytest needs to know. Importing this package imports
neither pytest nor PyTorch.
"""
