"""Our server without a model: the real API process before an engine that computes nothing."""
