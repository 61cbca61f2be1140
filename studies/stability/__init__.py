"""The stability study of section 3 and tables 2-4."""
