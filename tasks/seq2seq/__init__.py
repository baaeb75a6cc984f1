"""Sequence to sequence: summaries, questions, answers, filled blanks and the user's own pairs of texts."""
