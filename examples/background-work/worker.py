"""Processes tasks one by one. At SIGTERM it finishes the current one."""

import os
import signal
import socket
import time

import tasks

leaving = False


def leave(number, frame):
    global leaving
    leaving = True


signal.signal(signal.SIGTERM, leave)

# sd_notify(3): from here on the pool considers it started.
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])

while not leaving:
    task = tasks.take()
    if task is None:
        time.sleep(0.1)
        continue
    tasks.finish(task)
    print("done:", task.name, flush=True)
print("leaving, after the task that was under way", flush=True)
