"""`python -m metabench`: the same as the console script."""

from metabench.cli import main

if __name__ == "__main__":
    main()
