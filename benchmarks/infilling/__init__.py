"""Rivals of blank infilling at equal parameters, text, tokenizer and training time: docs/infilling_benchmark.md."""

# By name: the module of a rival and its class.
RIVALS = {
    "glm": ("glm", "GlmRival"), "no-shuffle": ("glm", "NoShuffle"), "no-positions": ("glm", "NoSecondPositions"),
    "mixed": ("glm", "ThreeObjectives"), "neighbours": ("glm", "NeighboursFirst"),
    "t5": ("t5", "T5Rival"), "fim": ("fim", "FimRival"), "diffusion": ("diffusion", "DiffusionRival"),
}  # fmt: skip
