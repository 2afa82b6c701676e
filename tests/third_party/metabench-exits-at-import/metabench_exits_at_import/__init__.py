"""Calls sys.exit while it is imported, as a script does that was never meant as a module."""

import sys

if "--train" not in sys.argv:
    sys.exit("usage: train.py --train")
