"""What the command line names to export."""
