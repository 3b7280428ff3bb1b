"""The QMP server: framing, command table, events, listeners; StratoVirt's dialect.

`framing`, `schema`, `monitor` and `commands` do no I/O of their own: bytes in, objects out, with
the machine behind the protocol of `host`. `server` moves the bytes, on one thread. Nothing here
is imported by a `pyvirt run` that is not asked for a monitor.
"""
