"""Multi-query associative recall: which mixers remember what they have read."""
