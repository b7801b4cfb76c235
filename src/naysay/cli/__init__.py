"""The command line: flags to a config, events to lines, errors to exit codes. Imports nothing heavy on its own."""
