"""Text encoders: token ids to features, one per token."""
