"""Imports TensorFlow without the notices that its native libraries print, which none of its settings silence.

Import this before Keras. If TensorFlow cannot be imported, what it printed is shown.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters is raised as an exception too
sys.stderr.flush()
_stderr = os.dup(2)
with tempfile.TemporaryFile() as _notices:
    os.dup2(_notices.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    except BaseException:
        _notices.seek(0)
        os.write(_stderr, _notices.read())
        raise
    finally:
        os.dup2(_stderr, 2)
        os.close(_stderr)
