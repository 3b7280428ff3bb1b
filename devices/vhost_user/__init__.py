"""The front end of vhost-user: devices whose queues a process of the host serves, the back end."""
