"""Commands on discs, each as a process of its own that begins at once: `start("stitch_edit", ...)`.

Loading PyTorch and the package takes seconds. One process loads both, and is forked for each command;
the fork does what `python tests/tiny.py stitch_edit ...` does, with its own files, signals and limits."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache


class Nursery:
    "The process that is forked; it ends with the one that made it."

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()

    def ask(self, files=(), **request):
        "A request and its answer, of one line each; the request may carry open files."
        socket.send_fds(self.socket, [json.dumps(request).encode() + b"\n"], files)
        answer = b""
        while not answer.endswith(b"\n"):
            part = self.socket.recv(4096)
            assert part, "the process that is forked has ended"
            answer += part
        return json.loads(answer)


nursery = cache(Nursery)  # one for each process of the tests


class Child:
    "A command that runs: what `subprocess.Popen` offers of it, output as text."

    def __init__(self, words, limit):
        self.returncode, self.texts = None, ["", ""]
        ends = [os.pipe() for _ in self.texts]
        files = [end for _, end in ends]
        self.pid = nursery().ask(files, words=words, limit=limit)
        for file in files:
            os.close(file)
        self.readers = [threading.Thread(target=self.read, args=(i, e[0])) for i, e in enumerate(ends)]
        for reader in self.readers:
            reader.start()

    def read(self, i, file):
        with open(file, encoding="utf-8", errors="replace") as stream:
            self.texts[i] = stream.read()

    def poll(self):
        if self.returncode is None:
            self.returncode = nursery().ask(pid=self.pid)
        return self.returncode

    def communicate(self, timeout=600):
        "Wait for its end: standard output, standard error."
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        for reader in self.readers:
            reader.join()
        return tuple(self.texts)


def start(*words, limit=None) -> Child:
    "A command in a process group of its own, its files no longer than `limit` bytes."
    return Child([str(w) for w in words], limit)


def serve(here: socket.socket):
    "Forks for each request; returns in a fork, with the words of its command, or None at the end."
    while True:
        message, files, *_ = socket.recv_fds(here, 65536, 2)
        if not message:
            return None
        request = json.loads(message)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                os.setpgid(0, 0)
                for k, file in enumerate(files, 1):
                    os.dup2(file, k)
                    os.close(file)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if request["limit"]:
                    resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (request["limit"],))
                return request["words"]
            with suppress(OSError):  # the fork was first; the group is there before the answer
                os.setpgid(answer, answer)
            for file in files:
                os.close(file)
        here.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    import tiny
    import torch._dynamo  # noqa: F401  (an optimiser loads it)

    tiny.use_disc()
    with socket.socket(fileno=int(sys.argv[1])) as here:
        words = serve(here)
    if words:
        tiny.main(words)
