"""Whatever owns a device or a directory: step, optimiser, sharding, checkpoints, log."""
