"""Fill blanks with a trained GLM: prompts, decoding, the interactive program."""

from files.errors import check_interpreter

check_interpreter()
