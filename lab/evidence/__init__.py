"""Many runs of the evidence put together over their seeds."""
