"""The one seam to the kernel: every system call the runtime makes by ctypes, with errors that name call and path."""
