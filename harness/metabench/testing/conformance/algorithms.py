"""All checks of an algorithm, in the order in which they are run."""

from __future__ import annotations

from metabench.testing.conformance.algorithm_predictions import add_checks_of_predictions
from metabench.testing.conformance.algorithm_training import add_checks_of_training
from metabench.testing.conformance.facts import add_check_of_the_clock, add_checks_of_facts
from metabench.testing.conformance.finding import Checks

CHECKS = Checks()
add_checks_of_facts(CHECKS)
add_checks_of_training(CHECKS)
add_checks_of_predictions(CHECKS)
add_check_of_the_clock(CHECKS)
