# Part of Apus, an inference optimizer and runtime.
# SPDX-License-Identifier: Apache-2.0
"""Random valid ONNX graphs: every graph is a function of its seed.

A graph grows node by node over a pool of values with known shapes and types; each family of operators
picks operands from the pool and adds its result.
"""

import numpy as np
import onnx
import onnx.helper as oh
from onnx import TensorProto, numpy_helper

FLOAT, INT64, INT32, BOOL, DOUBLE = (
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE)
NUMPY = {FLOAT: np.float32, INT64: np.int64, INT32: np.int32, BOOL: np.bool_, DOUBLE: np.float64}
# Elementwise functions of float operands whose domain is everything, with the first operator set.
UNARY = {
    "Relu": 6, "Sigmoid": 6, "Tanh": 6, "Abs": 6, "Neg": 6, "Floor": 6, "Ceil": 6, "Softplus": 1,
    "Softsign": 1, "Elu": 6, "Selu": 6, "LeakyRelu": 6, "HardSigmoid": 6, "Erf": 9, "Sign": 9,
    "Sin": 7, "Cos": 7, "Atan": 7, "Round": 11, "Celu": 12, "HardSwish": 14, "ThresholdedRelu": 10,
}
BINARY = ["Add", "Sub", "Mul", "Max", "Min", "Div", "Pow"]
# Where these jump, rounding errors decide: they see the graph's inputs only.
JUMPING = {"Floor", "Ceil", "Round", "Sign", "ThresholdedRelu"}
COMPARE = {"Less": 9, "Greater": 9, "Equal": 11, "LessOrEqual": 12, "GreaterOrEqual": 12}
REDUCE = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceSumSquare"]


class GraphFuzzer:
    """Builds one graph."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.opset = int(self.random.choice([7, 9, 11, 13, 14, 15, 17, 18, 20, 21]))
        self.nodes, self.tensors, self.pool, self.inputs = [], [], [], []
        self.count = 0

    def name(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    def pick(self, items):
        return items[int(self.random.integers(len(items)))]

    def chance(self, share):
        return self.random.random() < share

    def constant(self, array):
        """An initialiser, or a Constant node."""
        name = self.name("c")
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if self.chance(0.3):
            self.nodes.append(oh.make_node("Constant", [], [name], value=tensor))
        else:
            self.tensors.append(tensor)
        return name

    def weights(self, *shape, scale=None):
        scale = scale or 1 / max(1.0, np.sqrt(np.prod(shape[1:])))
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def add_input(self, shape, kind=FLOAT):
        name = self.name("x")
        symbols = [self.name("d") if self.chance(0.3) else size for size in shape]
        self.inputs.append((name, kind, shape, symbols))
        self.pool.append((name, shape, kind))

    def emit(self, op, operands, shape, kind=FLOAT, **attributes):
        name = self.name("v")
        self.nodes.append(oh.make_node(op, operands, [name], **attributes))
        self.pool.append((name, tuple(int(size) for size in shape), kind))
        return name

    def operand(self, kind=FLOAT, rank=None):
        """A value of the pool; None when there is none of that kind."""
        found = [v for v in self.pool if v[2] == kind and (rank is None or len(v[1]) in rank)]
        return self.pick(found) if found else None

    def source(self):
        """An input of the graph."""
        return self.pick([v for v in self.pool if v[0].startswith("x")])

    # The families. Each returns whether it added something.

    def unary(self):
        op = self.pick([name for name, since in UNARY.items() if since <= self.opset])
        x = self.source() if op in JUMPING else self.operand()
        self.emit(op, [x[0]], x[1])
        return True

    def positive(self):
        """Functions that need operands above zero."""
        x = self.operand()
        squared = self.emit("Mul", [x[0], x[0]], x[1])
        moved = self.emit("Add", [squared, self.constant(np.float32(0.5))], x[1])
        self.emit(self.pick(["Sqrt", "Log", "Reciprocal"]), [moved], x[1])
        return True

    def binary(self):
        x = self.operand()
        op = self.pick(BINARY)
        shape = list(x[1])
        for axis in range(len(shape)):
            if self.chance(0.3):
                shape[axis] = 1
        shape = shape[int(self.random.integers(len(shape) + 1)) if self.chance(0.3) else 0:]
        same = [v for v in self.pool if v[1] == x[1] and v[2] == FLOAT]
        if op == "Div":
            other = self.constant((self.random.random(shape) + 0.5).astype(np.float32))
        elif op == "Pow":
            other = self.constant(np.float32(self.pick([2, 3, 1, 0])))
        elif op in ("Max", "Min") and self.opset < 8:
            other = self.pick(same)[0]
        elif self.chance(0.4):
            other = self.pick(same)[0]
        else:
            other = self.weights(*shape, scale=1.0)
        operands = [x[0], other]
        if op in ("Add", "Mul") and self.chance(0.3):
            operands.reverse()
        self.emit(op, operands, x[1])
        return True

    def select(self):
        x = self.source()
        names = [name for name, since in COMPARE.items() if since <= self.opset]
        if not names:
            return False
        condition = self.emit(
            self.pick(names), [x[0], self.constant(np.float32(0.25))], x[1], BOOL)
        if self.opset >= 9:
            self.emit("Where", [condition, x[0], self.weights(*x[1], scale=1.0)], x[1])
        return True

    def clip(self):
        x = self.operand()
        if self.opset < 11:
            self.emit("Clip", [x[0]], x[1], min=-0.5, max=0.75)
        else:
            low, high = self.constant(np.float32(-0.5)), self.constant(np.float32(0.75))
            self.emit("Clip", self.pick([[x[0], low, high], [x[0], low], [x[0], "", high]]), x[1])
        return True

    def product(self):
        x = self.operand(rank=(2, 3, 4))
        if not x:
            return False
        columns = int(self.pick([1, 3, 8, 16, 17, 33]))
        if len(x[1]) == 2 and self.chance(0.5):
            b = self.weights(columns, x[1][1])
            operands = [x[0], b, self.weights(columns, scale=1.0)]
            self.emit("Gemm", operands, (x[1][0], columns), transB=1, alpha=0.5)
        else:
            self.emit("MatMul", [x[0], self.weights(x[1][-1], columns)], (*x[1][:-1], columns))
        return True

    def attention(self):
        """A product of two computed values."""
        x = self.operand(rank=(3, 4))
        if not x:
            return False
        order = [*range(len(x[1]) - 2), len(x[1]) - 1, len(x[1]) - 2]
        turned = self.emit("Transpose", [x[0]], [x[1][axis] for axis in order], perm=order)
        self.emit("MatMul", [x[0], turned], (*x[1][:-1], x[1][-2]))
        return True

    def convolution(self):
        x = self.operand(rank=(3, 4))
        if not x or x[1][1] == 0:
            return False
        spatial = len(x[1]) - 2
        kernel = [int(self.pick([1, 2, 3])) for _ in range(spatial)]
        strides = [int(self.pick([1, 1, 2])) for _ in range(spatial)]
        dilations = [int(self.pick([1, 1, 2])) for _ in range(spatial)]
        pads = [int(self.pick([0, 1])) for _ in range(2 * spatial)]
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
        sizes = [(x[1][2 + i] + pads[i] + pads[spatial + i] - extents[i]) // strides[i] + 1
                 for i in range(spatial)]
        if any(x[1][2 + i] + pads[i] + pads[spatial + i] < extents[i] for i in range(spatial)):
            return False
        channels = x[1][1]
        group = int(self.pick([g for g in (1, 2, 3, channels) if channels % g == 0]))
        out = group * int(self.pick([1, 2, 5]))
        operands = [x[0], self.weights(out, channels // group, *kernel)]
        if self.chance(0.6):
            operands.append(self.weights(out, scale=1.0))
        y = self.emit(
            "Conv", operands, (x[1][0], out, *sizes), strides=strides, dilations=dilations, pads=pads,
            group=group)
        if self.chance(0.4):
            vectors = [self.constant((self.random.random(out) + 0.5).astype(np.float32)) for _ in "sbmv"]
            y = self.emit("BatchNormalization", [y, *vectors], (x[1][0], out, *sizes))
        if self.chance(0.5):
            self.emit("Relu", [y], (x[1][0], out, *sizes))
        return True

    def pooling(self):
        x = self.operand(rank=(3, 4))
        if not x or min(x[1][2:]) < 3:
            return False
        spatial = len(x[1]) - 2
        op = self.pick(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
        if op.startswith("Global"):
            self.emit(op, [x[0]], (*x[1][:2], *[1] * spatial))
            return True
        kernel = [int(self.pick([2, 3])) for _ in range(spatial)]
        strides = [int(self.pick([1, 2])) for _ in range(spatial)]
        pads = [int(self.pick([0, 1])) for _ in range(2 * spatial)]
        more = {"count_include_pad": int(self.chance(0.5))} if op == "AveragePool" else {}
        sizes = [(x[1][2 + i] + pads[i] + pads[spatial + i] - kernel[i]) // strides[i] + 1
                 for i in range(spatial)]
        self.emit(op, [x[0]], (*x[1][:2], *sizes), kernel_shape=kernel, strides=strides, pads=pads, **more)
        return True

    def reduction(self):
        x = self.operand(rank=(1, 2, 3, 4))
        if not x or 0 in x[1]:
            return False
        op = self.pick(REDUCE)
        axes = sorted(self.random.choice(len(x[1]), int(self.random.integers(1, len(x[1]) + 1)),
                                         replace=False).tolist())
        keep = int(self.chance(0.5))
        shape = [1 if axis in axes else size for axis, size in enumerate(x[1]) if keep or axis not in axes]
        if self.opset >= (13 if op == "ReduceSum" else 18):
            operands, attributes = [x[0], self.constant(np.array(axes, np.int64))], {}
        else:
            operands, attributes = [x[0]], {"axes": axes}
        self.emit(op, operands, shape, keepdims=keep, **attributes)
        return True

    def normalisation(self):
        x = self.operand(rank=(2, 3, 4))
        if not x or 0 in x[1]:
            return False
        op = self.pick(["Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "LRN",
                        "LpNormalization"])
        if op == "LayerNormalization":
            if self.opset < 17:
                return False
            self.emit(op, [x[0], self.weights(x[1][-1]), self.weights(x[1][-1])], x[1])
        elif op == "InstanceNormalization":
            if len(x[1]) < 3 or np.prod(x[1][2:]) < 2:
                return False
            self.emit(op, [x[0], self.weights(x[1][1]), self.weights(x[1][1])], x[1])
        elif op == "LRN":
            if len(x[1]) != 4:
                return False
            self.emit(op, [x[0]], x[1], size=3)
        else:
            self.emit(op, [x[0]], x[1], axis=len(x[1]) - 1)
        return True

    def movement(self):
        x = self.operand()
        shape = list(x[1])
        kind = self.pick(["Transpose", "Reshape", "Flatten", "Concat", "Slice", "Pad", "Expand", "Tile",
                          "Squeeze", "Unsqueeze", "Split", "DepthToSpace"])
        integers = lambda values: self.constant(np.array(values, np.int64))
        if kind == "Transpose" and shape:
            order = self.random.permutation(len(shape)).tolist()
            self.emit(kind, [x[0]], [shape[axis] for axis in order], perm=order)
        elif kind == "Reshape" and shape and 0 not in shape:
            target = self.pick([[-1], [shape[0], -1], [1, *shape], [0, -1]])
            known = [shape[0] if size == 0 else size for size in target]
            if -1 in known:
                rest = int(np.prod(shape)) // int(np.prod([size for size in known if size != -1]))
                known = [rest if size == -1 else size for size in known]
            self.emit(kind, [x[0], integers(target)], known)
        elif kind == "Flatten" and shape:
            axis = int(self.random.integers(len(shape) + 1))
            self.emit(kind, [x[0]], (np.prod(shape[:axis], dtype=int), np.prod(shape[axis:], dtype=int)),
                      axis=axis)
        elif kind == "Concat" and shape:
            axis = int(self.random.integers(len(shape)))
            others = [v for v in self.pool if v[2] == FLOAT and len(v[1]) == len(shape) and all(
                a == b for i, (a, b) in enumerate(zip(v[1], shape)) if i != axis)]
            parts = [x, self.pick(others)]
            shape[axis] = sum(part[1][axis] for part in parts)
            self.emit(kind, [part[0] for part in parts], shape, axis=axis)
        elif kind == "Slice" and shape and self.opset >= 10 and min(shape) > 1:
            axis = int(self.random.integers(len(shape)))
            step = int(self.pick([1, 2, -1]))
            start, end = (shape[axis] - 1, -1000) if step < 0 else (1, int(self.pick([1000, shape[axis] - 1])))
            shape[axis] = len(range(shape[axis])[slice(start, None if end < 0 else end, step)])
            self.emit(kind, [x[0], integers([start]), integers([end]), integers([axis]), integers([step])], shape)
        elif kind == "Pad" and shape and min(shape) > 1:
            mode = self.pick(["constant", "edge", "reflect"])
            pads = [int(self.random.integers(0, 2)) for _ in range(2 * len(shape))]
            shape = [size + pads[i] + pads[len(shape) + i] for i, size in enumerate(shape)]
            if self.opset < 11:
                self.emit(kind, [x[0]], shape, mode=mode, pads=pads)
            else:
                more = [self.constant(np.float32(0.5))] if mode == "constant" and self.chance(0.5) else []
                self.emit(kind, [x[0], integers(pads), *more], shape, mode=mode)
        elif kind == "Expand" and self.opset >= 8:
            target = [2, *shape]
            self.emit(kind, [x[0], integers(target)], target)
        elif kind == "Tile" and shape and np.prod(shape) < 4000:
            repeats = [int(self.pick([1, 2])) for _ in shape]
            self.emit(kind, [x[0], integers(repeats)], [a * b for a, b in zip(shape, repeats)])
        elif kind == "Unsqueeze" and len(shape) < 4:
            target = [1, *shape]
            if self.opset < 13:
                self.emit(kind, [x[0]], target, axes=[0])
            else:
                self.emit(kind, [x[0], integers([0])], target)
        elif kind == "Squeeze" and 1 in shape:
            axis = shape.index(1)
            target = shape[:axis] + shape[axis + 1:]
            if self.opset < 13:
                self.emit(kind, [x[0]], target, axes=[axis])
            else:
                self.emit(kind, [x[0], integers([axis])], target)
        elif kind == "Split" and shape and shape[-1] >= 2:
            sizes = [1, shape[-1] - 1]
            names = [self.name("v"), self.name("v")]
            if self.opset < 13:
                self.nodes.append(oh.make_node(kind, [x[0]], names, axis=len(shape) - 1, split=sizes))
            else:
                self.nodes.append(oh.make_node(kind, [x[0], integers(sizes)], names, axis=-1))
            for name, size in zip(names, sizes):
                self.pool.append((name, (*shape[:-1], size), FLOAT))
        elif kind == "DepthToSpace" and len(shape) == 4 and shape[1] % 4 == 0 and shape[1]:
            self.emit(kind, [x[0]], (shape[0], shape[1] // 4, shape[2] * 2, shape[3] * 2), blocksize=2)
        else:
            return False
        return True

    def indexing(self):
        x = self.operand(rank=(1, 2, 3, 4))
        if not x or 0 in x[1]:
            return False
        axis = int(self.random.integers(len(x[1])))
        size = x[1][axis]
        kind = self.pick(["Gather", "ArgMax", "TopK", "CumSum", "OneHot"])
        if kind == "Gather":
            low = -size if self.opset >= 11 else 0
            indices = self.random.integers(low, size, self.pick([(), (3,), (2, 2)]))
            shape = (*x[1][:axis], *indices.shape, *x[1][axis + 1:])
            self.emit(kind, [x[0], self.constant(np.asarray(indices, np.int64))], shape, axis=axis)
        elif kind == "ArgMax":
            source = self.source()
            if not source[1] or 0 in source[1]:
                return False
            self.emit(kind, [source[0]], (1, *source[1][1:]), INT64, axis=0, keepdims=1)
        elif kind == "TopK" and self.opset >= 10:
            source = self.source()
            if not source[1] or 0 in source[1]:
                return False
            k = int(self.random.integers(1, source[1][-1] + 1))
            names = [self.name("v"), self.name("v")]
            self.nodes.append(oh.make_node(kind, [source[0], self.constant(np.array([k], np.int64))], names))
            self.pool.append((names[0], (*source[1][:-1], k), FLOAT))
            self.pool.append((names[1], (*source[1][:-1], k), INT64))
        elif kind == "CumSum" and self.opset >= 11:
            self.emit(kind, [x[0], self.constant(np.array(axis, np.int64))], x[1],
                      reverse=int(self.chance(0.5)), exclusive=int(self.chance(0.5)))
        else:
            return False
        return True

    def shapes(self):
        """Reshaping by computed shapes, as exporters write it."""
        x = self.operand(rank=(2, 3, 4))
        if not x or 0 in x[1]:
            return False
        shape = self.emit("Shape", [x[0]], (len(x[1]),), INT64)
        first = self.emit("Gather", [shape, self.constant(np.array([0], np.int64))], (1,), INT64)
        target = self.emit("Concat", [first, self.constant(np.array([-1], np.int64))], (2,), INT64, axis=0)
        self.emit("Reshape", [x[0], target], (x[1][0], int(np.prod(x[1][1:]))))
        return True

    def cast(self):
        x = self.operand()
        kind = self.pick([INT32, INT64, DOUBLE, BOOL])
        scaled = self.emit("Mul", [x[0], self.constant(np.float32(8))], x[1])
        bounded = self.emit("Tanh", [scaled], x[1])
        # Away from whole numbers, where rounding errors decide.
        moved = self.emit("Mul", [bounded, self.constant(np.float32(0.9))], x[1]) if kind != DOUBLE else scaled
        value = self.emit("Cast", [moved], x[1], kind, to=kind)
        self.emit("Cast", [value], x[1], FLOAT, to=FLOAT)
        return True

    def quantisation(self):
        x = self.operand()
        if self.opset < 10:
            return False
        zero = self.pick([np.uint8(128), np.int8(0), np.uint8(3)])
        scale = self.constant(np.float32(self.pick([0.05, 0.125])))
        point = self.constant(zero)
        q = self.name("q")
        self.nodes.append(oh.make_node("QuantizeLinear", [x[0], scale, point], [q]))
        self.emit("DequantizeLinear", [q, scale, point], x[1])
        self.is_quantised = True
        return True

    def recurrent(self):
        x = self.operand(rank=(3,))
        if not x or 0 in x[1] or x[1][0] > 6:
            return False
        length, batch, width = x[1]
        op, gates = self.pick([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
        hidden = int(self.pick([2, 5]))
        more = {"linear_before_reset": 1} if op == "GRU" and self.chance(0.5) else {}
        self.emit(op, [x[0], self.weights(1, gates * hidden, width), self.weights(1, gates * hidden, hidden),
                       self.weights(1, 2 * gates * hidden, scale=0.5)],
                  (length, 1, batch, hidden), hidden_size=hidden, **more)
        return True

    def branch(self):
        x = self.operand()
        condition = self.constant(np.bool_(self.chance(0.5)))
        if self.chance(0.5):
            total = self.emit("ReduceSum", [x[0]], (), keepdims=0)
            condition = self.emit("Greater", [total, self.constant(np.float32(1e6))], (), BOOL) \
                if self.opset >= 9 else condition
        def body(op):
            result = self.name("b")
            info = oh.make_tensor_value_info(result, FLOAT, None)
            return oh.make_graph([oh.make_node(op, [x[0]], [result])], self.name("g"), [], [info])
        self.emit("If", [condition], x[1], then_branch=body("Neg"), else_branch=body("Abs"))
        return True

    def build(self):
        """The model and its inputs."""
        self.is_quantised = False
        batch = int(self.pick([1, 2, 3]))
        shapes = [(batch, int(self.pick([1, 3, 4, 8, 17])), int(self.pick([5, 8, 13])), int(self.pick([4, 7, 16]))),
                  (batch, int(self.pick([1, 5, 16, 31]))), (batch, 4, int(self.pick([3, 8]))),
                  (int(self.pick([1, 5, 33])),), ()]
        for _ in range(int(self.random.integers(1, 3))):
            self.add_input(shapes[int(self.random.choice(len(shapes), p=[0.45, 0.25, 0.15, 0.1, 0.05]))])
        families = [self.unary, self.unary, self.positive, self.binary, self.binary, self.select, self.clip,
                    self.product, self.attention, self.convolution, self.convolution, self.pooling,
                    self.reduction, self.normalisation, self.movement, self.movement, self.indexing,
                    self.shapes, self.cast, self.quantisation, self.recurrent, self.branch]
        wanted = int(self.random.integers(1, 11))
        for _ in range(60):
            if wanted == 0:
                break
            families[int(self.random.integers(len(families)))]() and (wanted := wanted - 1)
            if max((np.prod(v[1]) for v in self.pool), default=0) > 60000:
                break
        used = {name for node in self.nodes for name in node.input}
        used |= {name for node in self.nodes for a in node.attribute if a.HasField("g")
                 for inner in a.g.node for name in inner.input}
        leaves = [v for v in self.pool if v[0] not in used and not v[0].startswith("x")]
        leaves = leaves or [self.pool[-1]]
        inputs = [oh.make_tensor_value_info(name, kind, symbols) for name, kind, _, symbols in self.inputs]
        outputs = [oh.make_tensor_value_info(name, kind, None) for name, _, kind in leaves]
        graph = oh.make_graph(self.nodes, "fuzz", inputs, outputs, self.tensors)
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", self.opset)], ir_version=8)
        feed = {name: self.random.standard_normal(shape).astype(NUMPY[kind])
                for name, kind, shape, _ in self.inputs}
        return model, feed
