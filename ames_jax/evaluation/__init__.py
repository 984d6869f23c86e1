"""Evaluation as the field does it: a retrieval task from files, its pairs scored once, its figures from the scores."""
