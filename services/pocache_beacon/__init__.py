"""The beacon: publishes the rounds of a local BLS chain at their times."""
