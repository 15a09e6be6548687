"""What the command lines of all packages share; only its module ``cli`` needs click and rich."""
