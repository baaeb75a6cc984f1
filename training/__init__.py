"""Training: arguments, engine, loop, optimizer, schedules, checkpoints, metrics."""
