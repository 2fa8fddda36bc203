"""An HTTP/1.1 server for one process, with limits of bytes and time for each connection, and draining at shutdown.

sockets: the addresses to listen on, and the limit of open files. parser: bytes to requests, with httptools. connection:
one client's requests, one at a time. exchange: one request and its reply as ASGI. unread: replies that wait until their
client reads them. pool: the connections of a listener. run: the server from start to shutdown.
"""
