"""Random damage to a model's file: to its protobuf fields, or to its bytes as they lie."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message

_INTEGERS: Final = (
    *(0, 1, -1, 2, 3, 7, 8, 12, 13, 16, 17, 22, 100, 127, 255, 999, 1024, 65536),
    *(2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)),
)
_FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3e38, float("nan"), float("inf"), -float("inf"))
_INVALID: Final = "<<not-utf-8>>"
_TEXTS: Final = (
    *(
        "",
        "x",
        "y",
        "w",
        "NOTSET",
        "ai.onnx",
        "ai.onnx.ml",
        "com.example",
        "value",
        "axis",
        "group",
    ),
    *("perm", "to", "pads", "strides", "kernel_shape", "transB", "epsilon", "then_branch", "body"),
    *("\x1b[31mred\x1b[0m", "[bold red]x[/]", "<script>alert(1)</script>", "a\nb", "a/b/../../c"),
    *("\x00", "ü" * 40, "n" * 5000, _INVALID),
)
_OPERATORS: Final = (
    "Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant "
    "ConstantOfShape Conv ConvTranspose CumSum DepthToSpace DequantizeLinear Div Dropout "
    "DynamicQuantizeLinear Equal Erf Expand Flatten Floor GRU Gather GatherElements "
    "GatherND Gelu Gemm GlobalAveragePool HardSigmoid HardSwish Identity If "
    "InstanceNormalization LSTM LayerNormalization LeakyRelu Loop MatMul MatMulInteger Max "
    "MaxPool Mean Min Mod Mul Neg Not OneHot PRelu Pad Pow QLinearConv QLinearMatMul "
    "QuantizeLinear RNN Range Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape "
    "Resize Scan ScatterElements ScatterND Shape Sigmoid Size Slice Softmax SpaceToDepth "
    "Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Upsample Where Xor Unheard "
)
OPERATORS: Final = tuple(_OPERATORS.split())
_BIG: Final = 256


def mutate(data: bytes, rng: random.Random) -> bytes:
    """``data``, an ONNX file, with one to six fields or up to eight stretches of it damaged."""
    return mutate_fields(data, rng) if rng.random() < 0.8 else mutate_bytes(data, rng)


def mutate_fields(data: bytes, rng: random.Random) -> bytes:
    """The model with one to six random fields changed, dropped, doubled, swapped or filled."""
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        messages = _messages(proto)
        # By kind first, or thousands of dimensions would hide the one graph.
        message = rng.choice(messages[rng.choice(sorted(messages))])
        fields = [field for field, _ in message.ListFields()]
        if not fields or rng.random() < 0.2:
            fields = list(message.DESCRIPTOR.fields)
        try:
            _damage(message, rng.choice(fields), messages, rng)
        except (ValueError, TypeError, OverflowError, DecodeError, EncodeError):
            # A value that the field's type rules out: protobuf can't write it, so no file has it.
            continue
    # protobuf writes no invalid UTF-8 itself, but a file may well hold some.
    whole: bytes = proto.SerializePartialToString()
    return whole.replace(_INVALID.encode(), b"\xff\xfe\xc3(" + b"\x80" * (len(_INVALID) - 4))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The file with one to eight stretches flipped, cut, doubled, moved or made up."""
    places = _structure(data)
    result = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = min(rng.choice(places), len(result)) if places else 0
        length = rng.choice((1, 1, 1, 2, 4, 9, 40))
        match rng.randrange(6):
            case 0:
                result[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del result[at : at + length]
            case 2:
                result[at:at] = rng.randbytes(length)
            case 3:
                result[at:at] = result[at : at + length]
            case 4:
                result[at : at + length] = rng.choice((b"\xff", b"\x00", b"\x80", b"\x7f")) * length
            case 5 if rng.random() < 0.3:
                del result[at:]
            case _:
                if at < len(result):
                    result[at] ^= 1 << rng.randrange(8)
    return bytes(result)


def _structure(data: bytes) -> list[int]:
    """Offsets of all bytes but those of big weights, which hold nothing to break."""
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        return list(range(len(data)))
    places: list[int] = []
    start = 0
    for tensor in _messages(proto).get("TensorProto", []):
        raw = tensor.raw_data
        if len(raw) > _BIG and (found := data.find(raw, start)) >= 0:
            places.extend(range(start, found))
            start = found + len(raw)
    places.extend(range(start, len(data)))
    return places


def _messages(root: Message) -> dict[str, list[Any]]:
    """Every message below ``root`` by the name of its type."""
    found: dict[str, list[Any]] = {}
    waiting: list[Message] = [root]
    while waiting:
        message = waiting.pop()
        found.setdefault(message.DESCRIPTOR.name, []).append(message)
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting.extend(value if field.is_repeated else (value,))
    return found


def _damage(
    message: Any, field: FieldDescriptor, messages: dict[str, list[Any]], rng: random.Random
) -> None:
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif field.is_repeated:
        _damage_list(getattr(message, field.name), field, messages, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        assert field.message_type is not None
        other = rng.choice(messages.get(field.message_type.name, [None]))
        inner = getattr(message, field.name)
        inner.CopyFrom(type(inner)() if other is None else _copy(other))
    else:
        setattr(message, field.name, _value(field, message, messages, rng))


def _damage_list(
    values: Any, field: FieldDescriptor, messages: dict[str, list[Any]], rng: random.Random
) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    action = rng.choice(("drop", "double", "swap", "add", "many", "reverse", "change"))
    at = rng.randrange(len(values)) if values else 0
    if action == "drop" and values:
        del values[at]
    elif action == "double" and values:
        values.append(_copy(values[at]) if is_message else values[at])
    elif action in ("swap", "reverse") and len(values) > 1:
        kept = [_copy(value) if is_message else value for value in values]
        if action == "swap":
            other = rng.randrange(len(kept))
            kept[at], kept[other] = kept[other], kept[at]
        else:
            kept.reverse()
        del values[:]
        values.extend(kept)
    elif is_message:
        assert field.message_type is not None
        pool = messages.get(field.message_type.name, [])
        if action == "many" and values:
            values.extend([_copy(values[at])] * rng.choice((3, 40)))
        elif pool:
            values.append(_copy(rng.choice(pool)))
        else:
            values.add()
    elif action == "change" and values:
        values[at] = _value(field, None, messages, rng)
    else:
        value = _value(field, None, messages, rng)
        values.extend([value] * (rng.choice((3, 40)) if action == "many" else 1))


def _copy(message: Any) -> Any:
    return type(message).FromString(message.SerializePartialToString())


def _value(
    field: FieldDescriptor, message: Any, messages: dict[str, list[Any]], rng: random.Random
) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(field, messages, rng)
    if field.type == FieldDescriptor.TYPE_BYTES:
        current = b"" if message is None else getattr(message, field.name)
        makers: Sequence[Callable[[], bytes]] = (
            lambda: b"",
            lambda: current[: len(current) // 2],
            lambda: current + b"\x00",
            lambda: current * 2,
            lambda: b"\xff" * len(current),
            lambda: b"\x00\x00\xc0\x7f" * max(1, len(current) // 4),
            lambda: rng.randbytes(rng.choice((1, 4, 100))),
        )
        return rng.choice(makers)()
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return rng.choice(field.enum_type.values).number
    if rng.random() < 0.3:
        return rng.randint(-4, 30)
    value = rng.choice(_INTEGERS)
    return value % 2**31 if field.type == FieldDescriptor.TYPE_INT32 else value


def _text(field: FieldDescriptor, messages: dict[str, list[Any]], rng: random.Random) -> str:
    if field.name == "op_type" and rng.random() < 0.8:
        return rng.choice(OPERATORS)
    if rng.random() < 0.6:
        names = [
            name for node in messages.get("NodeProto", []) for name in (*node.input, *node.output)
        ]
        names += [tensor.name for tensor in messages.get("TensorProto", [])]
        names += [value.name for value in messages.get("ValueInfoProto", [])]
        if names:
            return rng.choice(names)
    return rng.choice(_TEXTS)
