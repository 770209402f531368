"""`python -m spikebrain.cli`."""

from .app import main

main()
