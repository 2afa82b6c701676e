"""The engine: inner loop, training phases, evaluation. What decides a number lives here."""
