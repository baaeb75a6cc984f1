"""Fill blanks with a trained GLM: prompts, decoding, the interactive program."""
