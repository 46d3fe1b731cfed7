"""From outputs to numbers and pictures."""
