"""What plugin authors run on their own plugins: benchmarks, and what others take for the same."""
