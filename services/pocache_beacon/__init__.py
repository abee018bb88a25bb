"""The beacon: publishes a chain's rounds at their times; a local chain's, a threshold of members', or drand's."""
