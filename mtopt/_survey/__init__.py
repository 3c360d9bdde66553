"""conflict_report: from one batch, how the gradients of the losses conflict, where to combine them, at what cost."""
