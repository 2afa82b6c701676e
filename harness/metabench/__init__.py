"""metabench: every few-shot algorithm on the same episodes, under one protocol, honestly timed."""
