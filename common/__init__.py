"""Shared by all rooms: exit codes, files, ports, logs, paths. Imports nothing of the project."""
