"""Cross-validation: train one run per fold and score each on the test split."""
