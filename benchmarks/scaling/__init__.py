"""How the cost of a step grows: measured, fitted, and worked out for a size that no test machine has."""
