"""The front end of vhost-user, against back ends honest and hostile."""
