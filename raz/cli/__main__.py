"""`python -m raz.cli`: the command line of a checkout that is not installed."""

from raz.cli.main import main

main()
