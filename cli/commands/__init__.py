"""One module a command, found by `spikebrain.cli.app`: to add a command, add a module with a function of its name."""
