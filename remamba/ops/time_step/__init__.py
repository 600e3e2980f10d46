"""What happens to the time step before a scan."""
