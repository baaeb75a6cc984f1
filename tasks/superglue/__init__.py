"""SuperGLUE and the other natural language understanding tasks."""
