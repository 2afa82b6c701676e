"""metabench against other libraries, in one run: the same work, checked equal, then timed in turns.

    python -m metabench.testing.peers [--quick] [--only WORK] [--out FILE]

Each work is a pair of functions, ours and the peer's, on the same network, data, precision and
cores. Gradients or predictions are compared before any time is taken. The peers (`higher`,
`torchopt`, `easyfsl`, `learn2learn`) are optional: imported where they are used, and nowhere else.
"""
