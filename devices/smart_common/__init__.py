"""What all packages share: errors, manners of command lines, strict JSON, files, units and plots; it imports no other."""
