"""The report card of a norm (``python -m wn.compare``): numbers, words, figures, page."""
