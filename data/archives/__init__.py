"""Archives that the package clients of this machine download: fetched and checked here, never installed or imported."""
