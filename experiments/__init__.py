"""What a person runs: thin programs, and configs/*.flags, one per row of the results table."""

import data_prep.quiet_tensorflow  # noqa: F401 - before anything imports Keras
