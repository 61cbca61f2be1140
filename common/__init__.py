"""What every other room may use: exit codes, files, ports, logs. Imports nothing of the project."""
