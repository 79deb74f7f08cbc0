"""orchd as an ordinary user: a small half outside of the namespaces, and orchd as their root inside."""
