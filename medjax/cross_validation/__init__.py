"""Cross-validation: one run per fold, and the scores of each on the test split."""
