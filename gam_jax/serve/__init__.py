"""Serving: many texts in progress on one model, as pure functions of rows.  Knows no HTTP."""
