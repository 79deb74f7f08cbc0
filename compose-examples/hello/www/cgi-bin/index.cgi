#!/bin/sh
# httpd runs this for "/": it names the task that answers, so that balancing can be seen.
printf 'Content-Type: text/plain\r\nCache-Control: no-store\r\n\r\n'
printf 'Hello from %s\n' "$(hostname)"
