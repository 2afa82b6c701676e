"""Probabilities in 8 bits: what is kept of how sure a prediction was.

A table of thirty rows stands on millions of predictions, which are published with it; a float for
each would be most of what there is to publish. So a negative log-likelihood is kept as one of 256
codes, evenly spaced in its square root, where they lie closest for what is nearly certain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Codes = NDArray[np.uint8]

A_ROOT = 20
"""Codes a square root of a nat: around p = .5 two codes lie .04 apart in the probability."""


def encode(nll: NDArray[Any]) -> Codes:
    """Codes of negative log-likelihoods in nats, 0 or more; 162.6 is the largest that there is."""
    codes: Codes = np.minimum(np.rint(np.sqrt(nll) * A_ROOT), 255).astype(np.uint8)
    return codes


def decode(codes: Codes) -> NDArray[np.float64]:
    """The negative log-likelihoods, in nats, for which codes stand."""
    nll: NDArray[np.float64] = np.square(codes / A_ROOT)
    return nll


def codes_of(log_p: Tensor, labels: Tensor) -> Codes:
    """Codes of the log-probabilities (E, Q, ways) of labels (E, Q)."""
    nll = -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return encode(nll.clamp(min=0).cpu().numpy())
