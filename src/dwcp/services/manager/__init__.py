"""The manager: the control plane that users call. Its state is the control log; it keeps only copies."""
