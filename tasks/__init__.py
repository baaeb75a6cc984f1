"""The downstream tasks: what their files mean, how an example becomes a sample, how answers are scored."""
