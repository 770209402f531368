"""One TOML file per process: energy per operation, with its source."""
