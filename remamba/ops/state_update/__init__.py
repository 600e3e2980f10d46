"""One step of a scan."""
