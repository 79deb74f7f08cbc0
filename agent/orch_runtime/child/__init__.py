"""What runs between clone3 and execve: straight-line code in a process that Python does not know it forked."""
