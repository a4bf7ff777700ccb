"""The compression service: which codec makes data arrive soonest on a link, from a table of this host."""
