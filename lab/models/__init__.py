"""Small models to compare the embedded one with; each folder has a README."""

from pathlib import Path

FOLDER = Path(__file__).parent
