"""Pictures of numbers that others have found. Needs matplotlib, when it draws."""
