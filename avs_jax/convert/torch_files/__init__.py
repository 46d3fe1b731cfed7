"""PyTorch's weight files without PyTorch, and pickles of numpy arrays. They are not trusted.

A pickle is a program for a small stack machine, so a weight file can attack its reader. It guards
against:

  Code           A pickle may name only the globals in `reader.SafeUnpickler.find_class`. Each is a
                 stand-in that records what to read and cannot be altered. Any other global is an
                 error that names it, before anything is called.
  Memory         Sizes are compared before anything is allocated or unpacked: a tensor with its
                 storage, a storage with its zip member, a string with the rest of the file, all
                 arrays with the caller's limit. The calls of a pickle together copy no more than
                 the file holds. The memo is a dict, not an array as long as its largest index.
  Endless work   Only plain values are keys of dicts and sets: hashing a tuple that holds another
                 one twice, level upon level, takes 2^levels steps, and a deep one overflows the
                 stack. Messages do not print values of the file for the same reason. A storage
                 that many tensors share is loaded once.

Formats: torch/serialization.py and torch/_utils.py (PyTorch), `array_setstate` in
numpy/_core/src/multiarray/methods.c, and Python's pickletools.
"""
