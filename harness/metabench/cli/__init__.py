"""The command line: `app` is its frame and has the table of verbs; each verb is a module here."""

from metabench.cli.app import main

__all__ = ["main"]
