"""Trial-report completeness: what does this draft leave out? Independent of the CT model."""
