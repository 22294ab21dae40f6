"""``python -m gentrie.cli``, for where scripts are not on the path."""

from gentrie.cli import main

main()
