"""``python -m gentrie``: the command line."""

from gentrie.cli import main

main()
