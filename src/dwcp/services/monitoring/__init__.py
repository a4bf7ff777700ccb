"""`dwcp-monitoring`: how every process and every cluster is, for people and for Prometheus."""
