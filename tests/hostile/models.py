"""Models that mean harm, or that somebody's broken exporter wrote: a builder for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Builder = Callable[[], bytes]


def plain(text: str = "y = Relu(a)") -> onnx.ModelProto:
    """``x (2)`` to ``y (2)`` by an Add of the weight ``w`` and what ``text`` says."""
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        plain (float[2] x) => (float[2] y) {{ a = Add(x, w) {text} }}"""
    )
    proto.graph.initializer.append(weight("w", [1, 2]))
    return proto


def weight(name: str, values: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def altered(change: Callable[[onnx.ModelProto], Any], text: str = "y = Relu(a)") -> Builder:
    """A builder of the plain model after ``change``."""

    def build() -> bytes:
        proto = plain(text)
        change(proto)
        data: bytes = proto.SerializePartialToString()
        return data

    return build


def with_weight(**fields: Any) -> Builder:
    """The plain model with fields of its weight set."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims" or (name.endswith("_data") and name != "raw_data"):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return altered(change)


def with_node(op: str, inputs: Sequence[str], *weights: TensorProto, **attributes: Any) -> Builder:
    """The plain model with one more node, which makes ``z``."""

    def change(proto: onnx.ModelProto) -> None:
        domain = attributes.pop("domain", "")
        outputs = attributes.pop("outputs", ["z"])
        proto.graph.node.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        proto.graph.initializer.extend(weights)
        proto.graph.output.append(helper.make_empty_tensor_value_info("z"))

    return altered(change)


def with_invalid_text(change: Callable[[onnx.ModelProto, str], Any]) -> Builder:
    """The plain model with bytes that are no UTF-8 where ``change`` puts its text."""

    def build() -> bytes:
        proto = plain()
        change(proto, "not-utf-8")
        return bytes(proto.SerializeToString()).replace(b"not-utf-8", b"not\xff\xfe\xc3(-8")

    return build


def truncated(share: float) -> Builder:
    """The first ``share`` of a valid file."""

    def build() -> bytes:
        data = plain().SerializeToString()
        return bytes(data[: int(len(data) * share)])

    return build


def nested(depth: int) -> Builder:
    """An If in an If in an If."""

    def build() -> bytes:
        # Written from the inside out as bytes: protobuf itself refuses to nest so deep.
        inner = helper.make_graph(
            [helper.make_node("Relu", ["a"], ["t"])],
            "body",
            [],
            [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])],
        )
        body = inner.SerializeToString()
        for level in range(depth):
            node = helper.make_node("If", ["c"], [f"t{level}"]).SerializeToString()
            for name in (b"then_branch", b"else_branch"):
                attribute = field(1, name) + field(6, body) + b"\xa0\x01\x05"
                node += field(5, attribute)
                if depth > 5:
                    break
            body = field(1, node) + field(2, b"body") + field(12, field(1, b"t%d" % level))
        proto = plain()
        proto.graph.initializer.append(weight("c", True, np.bool_))
        # A field of a message that comes twice is merged into one.
        return bytes(proto.SerializeToString()) + field(7, field(1, body_node(body)))

    return build


def body_node(body: bytes) -> bytes:
    node = helper.make_node("If", ["c"], ["nested"]).SerializeToString()
    attributes = (field(1, name) + field(6, body) for name in (b"then_branch", b"else_branch"))
    return bytes(node) + b"".join(field(5, value + b"\xa0\x01\x05") for value in attributes)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    head, size = bytearray(), number << 3 | 2
    for value in (size, len(content)):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def functions(calls: Mapping[str, Sequence[str]]) -> Builder:
    """Local functions of one input that call each other as told; ``f0`` is called."""

    def change(proto: onnx.ModelProto) -> None:
        standard = helper.make_opsetid("", 17)
        own = helper.make_opsetid("own", 1)
        proto.opset_import.append(own)
        for name, called in calls.items():
            nodes = [
                helper.make_node(op, [f"t{k}"], [f"t{k + 1}"], domain="own")
                for k, op in enumerate(called)
            ]
            nodes.append(helper.make_node("Relu", [f"t{len(called)}"], ["out"]))
            proto.functions.append(
                helper.make_function("own", name, ["t0"], ["out"], nodes, [standard, own])
            )
        proto.graph.node.append(helper.make_node("f0", ["a"], ["z"], domain="own"))

    return altered(change)


def sparse(indices: Any, dims: Sequence[int], count: int = 2) -> Builder:
    """The plain model with a sparse weight."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.sparse_initializer.add(dims=dims)
        tensor.values.CopyFrom(weight("s", np.ones(count)))
        tensor.indices.CopyFrom(weight("i", indices, np.int64))

    return altered(change)


def bomb(op: str, inputs: Sequence[str], weights: dict[str, Any], copies: int = 1) -> Builder:
    """Constants that come to gigabytes when they are evaluated, ``copies`` times over."""

    def change(proto: onnx.ModelProto) -> None:
        for name, (values, dtype) in weights.items():
            proto.graph.initializer.append(weight(name, values, dtype))
        for k in range(copies):
            proto.graph.node.append(helper.make_node(op, inputs, [f"z{k}"]))
            proto.graph.node.append(helper.make_node("Add", [f"z{k}", "a"], [f"u{k}"]))

    return altered(change)


def doubling(times: int) -> Builder:
    """A constant that is joined to itself, again and again."""

    def change(proto: onnx.ModelProto) -> None:
        for k in range(times):
            source = f"d{k}" if k else "w"
            proto.graph.node.append(
                helper.make_node("Concat", [source, source], [f"d{k + 1}"], axis=0)
            )
        proto.graph.node.append(helper.make_node("Shape", [f"d{times}"], ["z"]))

    return altered(change)


def chain(op: str, length: int) -> Builder:
    """``length`` nodes of one operator in a row."""

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[-1].output[0] = "t0"
        proto.graph.node.extend(
            helper.make_node(op, [f"t{k}"], [f"t{k + 1}" if k < length - 1 else "y"])
            for k in range(length)
        )

    return altered(change)


def wide(length: int) -> Builder:
    """``length`` weights that meet in one Concat."""

    def change(proto: onnx.ModelProto) -> None:
        names = [f"w{k}" for k in range(length)]
        proto.graph.initializer.extend(weight(name, [k]) for k, name in enumerate(names))
        proto.graph.node.append(helper.make_node("Concat", names, ["z"], axis=0))

    return altered(change)


def constants(length: int) -> Builder:
    """``length`` sums of constants in a row, each of which something reads."""

    def change(proto: onnx.ModelProto) -> None:
        for k in range(length):
            proto.graph.node.append(
                helper.make_node("Add", [f"k{k}" if k else "w", "w"], [f"k{k + 1}"])
            )
        names = ["a", *(f"k{k + 1}" for k in range(length))]
        proto.graph.node.append(helper.make_node("Concat", names, ["z"], axis=0))

    return altered(change)


def layer(op: str, x: Sequence[int], *weights: TensorProto, **attributes: Any) -> Builder:
    """One operator on ``x`` with weights that may not suit it."""

    def build() -> bytes:
        names = ["x", *(tensor.name for tensor in weights)]
        graph = helper.make_graph(
            [helper.make_node(op, names, ["y"], **attributes)],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_empty_tensor_value_info("y")],
            list(weights),
        )
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        return bytes(model.SerializeToString())

    return build
