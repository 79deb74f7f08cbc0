"""The cluster's certificate authority: who gets which certificate, and how the root is changed without downtime."""
