"""A report on runs: one page of HTML, or Markdown, with nothing outside it."""
