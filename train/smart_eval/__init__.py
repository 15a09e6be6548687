"""The robustness of checkpoints and bundles: attacks, checks, threats, corruptions and the page that shows them."""
