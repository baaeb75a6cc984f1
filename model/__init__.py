"""The GLM language model: configuration, network, heads, prompt encoder and checkpoint format."""

from files.errors import check_interpreter

check_interpreter()
