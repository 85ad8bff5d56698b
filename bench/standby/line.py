#!/usr/bin/env python3
"""One end of a line with a rate and a delay, for kernels that have no netem.

Usage: line.py ADDRESS/PREFIX OWN-SOCKET OTHER-SOCKET BITS-PER-SECOND DELAY-SECONDS

Runs in a network namespace and makes the device tun0 there. What the kernel sends into it goes to the other end's socket
(Unix, datagrams) after the delay and at most at the rate; what comes on the own socket goes to the kernel. A queue of more
than a megabyte drops, as a router's does. For slow lines: a packet costs some 50 µs of a processor.
"""

import collections
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time

address, own, other, rate, delay = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5])
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
subprocess.run(["ip", "address", "add", address, "dev", "tun0"], check=True)
subprocess.run(["ip", "link", "set", "tun0", "up"], check=True)
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.bind(own)
# Two that wait for each other to take a packet would wait for ever.
line.setblocking(False)
queue, queued, free_at = collections.deque(), 0, 0.0
while True:
    now, full = time.monotonic(), False
    while queue and queue[0][0] <= now:
        try:
            line.sendto(queue[0][1], other)
        except BlockingIOError:
            full = True
            break
        except OSError:
            pass  # the other end is not there yet, or no more: the packet is lost
        queued -= len(queue.popleft()[1])
    wait = max(0.001 if full else 0.0, queue[0][0] - now) if queue else None
    for ready in select.select([tun, line], [], [], wait)[0]:
        if ready is line:
            os.write(tun, line.recv(65536))
            continue
        packet = os.read(tun, 65536)
        if queued + len(packet) <= 1 << 20:
            free_at = max(free_at, time.monotonic()) + len(packet) * 8 / rate
            queue.append((free_at + delay, packet))
            queued += len(packet)
