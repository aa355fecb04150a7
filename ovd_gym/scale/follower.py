"""One of a learner's processes, as the trainer starts it; the arguments are address, rank, size and device."""

from __future__ import annotations

import sys

from ovd_gym.scale.learners import follow

if __name__ == "__main__":
    address, rank, size, *device = sys.argv[1:]
    follow(address, int(rank), int(size), device[0] if device else None)
