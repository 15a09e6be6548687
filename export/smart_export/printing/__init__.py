"""What ``smart-export`` shows to people; only its module ``cli`` needs click and rich."""
