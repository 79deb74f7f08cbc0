"""The seam to the kernel: namespaces, rtnetlink, nftables, conntrack. Everything above it is free of byte layouts."""
