"""Models behind a port: the OpenAI API over engines of rows."""
