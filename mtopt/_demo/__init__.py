"""The demo: GradDrop against the plain sum on overlaid digits. The library imports nothing from here."""
