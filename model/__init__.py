"""The GLM language model: configuration, network, heads, prompt encoder and checkpoint format."""
