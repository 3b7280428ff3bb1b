# For the shell on the console, which would take busybox's own and signal an init daemon.
alias poweroff=/sbin/poweroff halt=/sbin/halt reboot=/sbin/reboot
