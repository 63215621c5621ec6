"""Trains models on corpora and says what they learned; ``mmbuild`` itself never imports this package."""

import os

# Idle OpenMP threads spin by default, and take the cores from the threads that read and decode: measured on two busy
# cores, a step of the tiny config takes 4 s instead of 0.3 s. It is read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
