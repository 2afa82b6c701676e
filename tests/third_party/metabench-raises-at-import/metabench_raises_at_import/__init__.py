"""Fails while it is imported, as a plugin does whose own dependency has changed."""

import metabench

print("this belongs on standard error, if anywhere")
hookimpl = metabench.hookimpl
settings = {"width": 64}["depth"]
