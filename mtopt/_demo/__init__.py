"""The demo's two problems, how they are trained, and their pictures. The library imports nothing from here."""
