"""What every room does with files: read text and JSON that people wrote, write whole files, notice damaged ones."""
