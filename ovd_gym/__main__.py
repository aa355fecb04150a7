"""``python -m ovd_gym``: the command line."""

from ovd_gym.cli import main

main()
