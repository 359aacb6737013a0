"A TFLite file small enough to be written by hand: what `nets.mediapipe.read_graph` reads, the other way round."

import struct

import numpy as np


def number(kind, value):
    return ('number', struct.pack('<' + kind, value))


def array(values, dtype):
    return ('bytes', struct.pack('<I', len(values)) + np.asarray(values, dtype).tobytes())


def text(value):
    return ('bytes', struct.pack('<I', len(value)) + value.encode() + b'\0')


def table(**fields):
    "`f3=number('i', 7)` is field 3."
    return ('table', {int(k[1:]): v for k, v in fields.items()})


def tables(*items):
    return ('tables', items)


class Writer:
    def __init__(self):
        self.data = bytearray(8)

    def align(self):
        self.data += b'\0' * (-len(self.data) % 8)

    def put(self, item):
        "Write an item behind what is there; its place."
        kind, value = item
        self.align()
        if kind == 'bytes':
            self.data += b'\0' * 4  # so that what follows the count is aligned to 8
            place = len(self.data)
            self.data += value
            return place
        if kind == 'tables':
            place = len(self.data)
            self.data += struct.pack('<I', len(value)) + bytes(4 * len(value))
            for k, child in enumerate(value):
                slot = place + 4 + 4 * k
                target = self.put(child)
                struct.pack_into('<I', self.data, slot, target - slot)
            return place
        head = len(self.data)
        last = max(value, default=-1)
        self.data += struct.pack('<HH', 4 + 2 * (last + 1), 4 + 4 * len(value))
        offsets = {field: 4 + 4 * k for k, field in enumerate(sorted(value))}
        for field in range(last + 1):
            self.data += struct.pack('<H', offsets.get(field, 0))
        self.align()
        place = len(self.data)
        self.data += struct.pack('<i', place - head) + bytes(4 * len(value))
        for field in sorted(value):
            what, inner = value[field]
            slot = place + offsets[field]
            if what == 'number':
                self.data[slot : slot + len(inner)] = inner
            else:
                target = self.put(value[field])
                struct.pack_into('<I', self.data, slot, target - slot)
        return place


def tensor(shape, kind=0, buffer=0):
    return table(f0=array(shape, '<i4'), f1=number('b', kind), f2=number('I', buffer))


def operator(code, inputs, output, options=None):
    fields = dict(f0=number('I', code), f1=array(inputs, '<i4'), f2=array([output], '<i4'))
    return table(**fields, **(dict(f4=options) if options else {}))


def small_network(weights, bias):
    "A convolution of stride 2 with padding SAME, whose weights are 16 bit floats, then relu: (1,8,8,3) to (1,4,4,n)."
    n = len(bias)
    conv = table(f0=number('b', 0), f1=number('i', 2), f2=number('i', 2))
    graph = table(
        f0=tables(
            tensor((1, 8, 8, 3)),
            tensor(weights.shape, 1, 1),
            tensor(weights.shape),
            tensor((n,), 0, 2),
            tensor((1, 4, 4, n)),
            tensor((1, 4, 4, n)),
        ),
        f1=array([0], '<i4'),
        f2=array([5], '<i4'),
        f3=tables(operator(0, [1], 2), operator(1, [0, 2, 3], 4, conv), operator(2, [4], 5)),
    )
    codes = [table(f0=number('b', k), f3=number('i', k)) for k in (6, 3, 19)]
    buffers = tables(
        table(),
        table(f0=array(np.frombuffer(weights.astype('<f2').tobytes(), np.uint8), np.uint8)),
        table(f0=array(np.frombuffer(bias.astype('<f4').tobytes(), np.uint8), np.uint8)),
    )
    writer = Writer()
    root = writer.put(table(f1=tables(*codes), f2=tables(graph), f4=buffers))
    writer.data[:8] = struct.pack('<I', root) + b'TFL3'
    return bytes(writer.data)
