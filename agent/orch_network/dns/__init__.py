"""Names for tasks: the codec and the zones are pure; resolver and forwarder do the talking."""
