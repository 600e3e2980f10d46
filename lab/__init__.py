"""The laboratory: experiments with the library, not installed with it (see README.md here)."""
