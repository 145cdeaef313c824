"""Programs on a terminal of 80 columns."""

import fcntl
import os
import struct
import subprocess
import termios


def on_a_terminal(command, cwd, env):
    """What a command shows that must succeed, stdout and stderr together."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=writer, stdout=writer, stderr=writer)
    os.close(writer)
    printed = b""
    try:
        while part := os.read(reader, 1 << 16):
            printed += part
    except OSError:  # how the end of a terminal is told
        pass
    os.close(reader)
    assert process.wait() == 0, printed.decode()
    return printed.decode()
