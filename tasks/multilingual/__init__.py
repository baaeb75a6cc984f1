"""Tasks of several languages: where their files are, what is in them, how they are prompted and scored."""
