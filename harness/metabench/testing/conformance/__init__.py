"""The conformance kit: what a plugin has to do to stand in a table, checked.

One module a kind of plugin holds its checks; each is a function of a subject that returns nothing,
a remark, or raises. `metabench check` runs them in a process of their own, a plugin's own tests by
the marker of `metabench.testing.pytest_plugin`.
"""
