"""DeepSpeed: its configuration, its engine, its checkpoints."""
