"""Data on disk: the data folder, atomic folders, array caches, archives, class splits, the list."""
