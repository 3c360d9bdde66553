"""The command line. The library imports nothing from here."""
