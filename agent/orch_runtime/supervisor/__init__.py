"""The runtime supervisor: one thread, one epoll loop; forks containers, watches them, writes their logs."""
