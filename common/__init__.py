"""Shared by all packages: exit codes, files, ports, logs. Imports nothing else of the project."""
