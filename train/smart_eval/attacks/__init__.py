"""The attacks that smart-eval knows by name: a file for each kind, and a row in ``table``."""
