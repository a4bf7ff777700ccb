"""The agent of one worker machine: ships payloads, runs commands in sandboxes, publishes outputs."""
