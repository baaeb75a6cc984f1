"""The downstream tasks: what their files mean, how an example becomes a sample, how answers are scored."""

from files.errors import check_interpreter

check_interpreter()
