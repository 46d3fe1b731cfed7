"""Whatever owns a device or a directory: step, optimizer, sharding, checkpoints, log."""
