"""``smart-run calibrate``: fit the tripwire to frames of the user's own."""
