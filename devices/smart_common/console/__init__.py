"""What the command lines of all four packages share; only its module ``cli`` needs click and rich."""
