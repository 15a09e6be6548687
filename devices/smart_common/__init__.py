"""What all packages share: errors, the manners of command lines, strict JSON, files, units and plots."""
