"""Folding what scales, shifts or pads beside a layer into the layer's own constants."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.affine import Affine, arithmetic, normalization
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import (
    constant,
    input_at,
    is_constant,
    output_names,
    producer,
    remove_node,
    set_input,
    sole_reader,
    take_over,
    values_of,
)
from onnxslim_tk.graph.evaluate import bytes_of
from onnxslim_tk.graph.inference import infer_types
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor, bodies
from onnxslim_tk.graph.site import Site, zero_padding
from onnxslim_tk.graph.squeezed import bring_before_squeeze

Array = NDArray[Any]

_KINDS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NORMALIZATION: Final = "BatchNormalization"
_WIDEST_PAD: Final = 3


class Fusion:
    """The foldings of a model: each is exact up to float rounding."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._outputs = output_names(model)
        self._types = infer_types(model)

    def sites(self) -> Iterator[Site]:
        """Every layer of the model in graph order, bodies included."""
        for path, graph in bodies(self._model.graph):
            for node in list(graph.nodes):
                if node.op in _KINDS and node.domain in STANDARD_DOMAINS:
                    yield Site(node, graph, path, self._names(node, path))

    def fuse(self, sites: Iterable[Site]) -> None:
        """Fold whatever can be into ``sites``, in place, until nothing is left.

        What lies behind a layer goes first: a normalization between two goes into the first.
        Past a Relu comes last.
        """
        chosen = list(sites)
        for site in chosen:
            while bring_before_squeeze(self._model, site, self._outputs) or self._fold_behind(site):
                pass
        for site in chosen:
            while self._fold_before(site):
                pass
        for site in chosen:
            self._fold_past_relu(site)

    def left(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """The names of every normalization that is still there, and why it is."""
        for path, graph in bodies(self._model.graph):
            for node in graph.nodes:
                if node.op == _NORMALIZATION and node.domain in STANDARD_DOMAINS:
                    yield self._names(node, path), self._reason(node, graph, path)

    def _names(self, node: Node, path: str) -> tuple[str, ...]:
        key = path + node.outputs[0].name
        return self._model.origins.get(key, (key,))

    def _reason(self, node: Node, graph: Graph, path: str) -> str:
        found = normalization(node)
        if isinstance(found, str):
            return found
        maker = producer(node.inputs[0])
        near = [maker] if maker is not None and maker.op in _KINDS else []
        near = near or [reader for reader in node.outputs[0].outputs if reader.op in _KINDS]
        if not near:
            return "there is no layer right before or behind it"
        site = Site(near[0], graph, path, ())
        if site.weight is None:
            return "the weight of the layer beside it is no dense float32 constant"
        if not self._is_own(site.weight):
            return "the weight of the layer beside it is shared with another layer"
        if maker is not None and maker.op in _KINDS:
            if sole_reader(node.inputs[0], self._outputs) is None:
                return "the output of the layer before it is read elsewhere too"
            return "the layer before it has other channels, or is left out"
        return "what reads it pads, or is not only layers"

    def _is_own(self, weight: Tensor) -> bool:
        return len(weight.outputs) == 1 and weight.name not in self._outputs

    def _record(self, site: Site, name: str, operator: str, saved: int) -> None:
        site.folded.append(name)
        site.operators.append(operator)
        site.saved += saved

    def _fold_behind(self, site: Site) -> bool:
        """Fold the next node behind ``site``; False where there is none that can be."""
        if site.weight is None or (site.node.op == "Gemm" and not site.is_plain):
            return False
        holder, bias = site.node, site.bias()
        reader = site.reader(holder, self._outputs)
        if site.node.op == "MatMul" and reader is not None and reader.op == "Add":
            # The bias of a MatMul stands in an Add, which stays; what follows goes into both.
            found = self._affine(site, reader, holder.outputs[0])
            if found is None:
                return False
            holder, bias = reader, found.shift
            reader = site.reader(holder, self._outputs)
        found = None if reader is None else self._affine(site, reader, holder.outputs[0])
        if reader is None or found is None or bias is None:
            return False
        loose = site.node.op == "MatMul" and holder is site.node and bool(found.shift.any())
        scales = bool((found.factor != 1).any())
        if (loose and reader.op != _NORMALIZATION) or (scales and not self._is_own(site.weight)):
            return False
        shift = bias * found.factor + found.shift
        weight = site.scaled(values_of(site.weight).astype(np.float64), found.factor)
        if not _fits(weight, shift):
            return False
        involved = _distinct(site.node, holder, reader)
        before, name, op = bytes_of(involved), self._names(reader, site.path)[0], reader.op
        if scales:
            set_input(site.node, 1, self._constant(weight))
        if loose:
            # Behind a MatMul, a normalization becomes the Add of what it shifts by.
            reader.op, reader.attrs = "Add", {}
            reader.inputs = [holder.outputs[0], self._constant(shift)]
            reader.outputs = [reader.outputs[0]]
        else:
            if found.shift.any() or bias.any():
                self._set_bias(site, holder, shift)
            take_over(self._model, holder, reader, site.graph, site.path)
        self._record(site, name, op, before - bytes_of(involved))
        return True

    def _fold_past_relu(self, site: Site) -> bool:
        """Fold what scales and shifts a Relu behind ``site``, by positive factors.

        ``a * max(x, 0) + b`` is ``max(a * x + b, b)``: with a shift the Relu becomes a Max.
        """
        if site.weight is None or site.node.op not in ("Conv", "ConvTranspose"):
            return False
        relu, bias = site.reader(site.node, self._outputs), site.bias()
        if relu is None or relu.op != "Relu" or bias is None or not self._is_own(site.weight):
            return False
        reader = site.reader(relu, self._outputs)
        found = None if reader is None else self._affine(site, reader, relu.outputs[0])
        if reader is None or found is None or not (found.factor > 0).all():
            return False
        shift = bias * found.factor + found.shift
        weight = site.scaled(values_of(site.weight).astype(np.float64), found.factor)
        if not _fits(weight, shift, found.shift):
            return False
        before = bytes_of([site.node, relu, reader])
        name, operator = self._names(reader, site.path)[0], reader.op
        set_input(site.node, 1, self._constant(weight))
        if shift.any() or bias.any():
            self._set_bias(site, site.node, shift)
        if found.shift.any():
            relu.op, relu.attrs = "Max", {}
            shape = [1, -1] + [1] * (len(site.weight.shape) - 2)
            relu.inputs.append(self._constant(found.shift.reshape(shape)))
        take_over(self._model, relu, reader, site.graph, site.path)
        self._record(site, name, operator, before - bytes_of([site.node, relu]))
        return True

    def _affine(self, site: Site, node: Node, source: Tensor) -> Affine | None:
        """``node`` behind ``site`` as a map of its channels."""
        assert site.weight is not None
        rank, axis = len(site.weight.shape), 1
        if site.node.op == "MatMul":
            known = self._types.get(site.node.outputs[0].name)
            rank = len(known.shape) if known is not None and known.shape else 1
            axis = rank - 1
        if node.op != _NORMALIZATION:
            return arithmetic(node, source, site.channels, axis, rank)
        found = normalization(node) if axis == 1 and node.inputs[0] is source else ""
        fits = isinstance(found, Affine) and found.factor.size == site.channels
        return found if fits and isinstance(found, Affine) else None

    def _set_bias(self, site: Site, holder: Node, bias: Array) -> None:
        """Write the bias: as the constant of the Add behind a MatMul, or as the third input."""
        if holder is not site.node:
            slot = next(k for k, tensor in enumerate(holder.inputs) if is_constant(tensor))
            holder.inputs[slot] = self._constant(bias)
            return
        set_input(site.node, 2, self._constant(bias / site.bias_factor))

    def _constant(self, values: Array) -> Tensor:
        return constant(self._model, values.astype(np.float32))

    def _fold_before(self, site: Site) -> bool:
        """Fold the node that feeds ``site``; False where it can't be."""
        source = site.node.inputs[0]
        maker = producer(source)
        if maker is None or maker.domain not in STANDARD_DOMAINS or source.name in self._outputs:
            return False
        here = {id(node) for node in site.graph.nodes}
        others = [Site(node, site.graph, site.path, ()) for node in source.outputs]
        if id(maker) not in here or not all(id(other.node) in here for other in others):
            return False
        if maker.op == "Pad":
            folds = self._fold_pad
        elif maker.op == _NORMALIZATION and all(self._takes(other, maker) for other in others):
            folds = self._fold_normalization
        else:
            return False
        before, name = bytes_of([site.node, maker]), self._names(maker, site.path)[0]
        if not folds(site, maker):
            return False
        if not source.outputs:
            remove_node(site.graph, maker)
        self._record(site, name, maker.op, before - bytes_of([site.node, maker]))
        return True

    def _takes(self, site: Site, maker: Node) -> bool:
        """Whether a normalization may go into ``site`` behind it: no zeros are put in between."""
        node = site.node
        if (
            node.op not in ("Conv", "Gemm")
            or node.domain not in STANDARD_DOMAINS
            or site.weight is None
        ):
            return False
        once = sum(tensor is maker.outputs[0] for tensor in node.inputs) == 1
        if not once or node.inputs[0] is not maker.outputs[0] or not self._is_own(site.weight):
            return False
        if node.op == "Gemm":
            return site.is_plain and site.bias() is not None
        padded = any(node.attrs.get("pads", [])) and node.attrs.get("auto_pad", "") != "VALID"
        plain = node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return plain and not padded and site.bias() is not None

    def _fold_normalization(self, site: Site, maker: Node) -> bool:
        found, bias = normalization(maker), site.bias()
        if isinstance(found, str) or bias is None or site.weight is None:
            return False
        values = values_of(site.weight).astype(np.float64)
        rows = site.node.op == "Gemm" and not site.node.attrs.get("transB", 0)
        inputs = values.shape[0 if rows else 1] * (site.groups if site.node.op == "Conv" else 1)
        if found.factor.size != inputs:
            return False
        weight, shift = site.fed(values, found)
        total = bias + shift
        if not _fits(weight, total):
            return False
        set_input(site.node, 1, self._constant(weight))
        if total.any() or bias.any():
            self._set_bias(site, site.node, total)
        site.node.inputs[0] = maker.inputs[0]
        return True

    def _fold_pad(self, site: Site, maker: Node) -> bool:
        source, node = maker.outputs[0], site.node
        if node.op != "Conv" or sum(tensor is source for tensor in node.inputs) != 1:
            return False
        weight = input_at(node, 1)
        auto = node.attrs.get("auto_pad", "NOTSET")
        known = weight is not None and is_constant(weight) and auto in ("NOTSET", "VALID")
        zeros = zero_padding(maker, len(weight.shape)) if known and weight is not None else None
        # Along long kernels onnxruntime runs padded convolutions several times slower than a Pad.
        if zeros is None or max(zeros) > _WIDEST_PAD:
            return False
        own = [0] * len(zeros) if auto == "VALID" else node.attrs.get("pads", [0] * len(zeros))
        node.attrs["pads"] = [int(a + b) for a, b in zip(own, zeros, strict=True)]
        node.attrs.pop("auto_pad", None)
        node.inputs[0] = maker.inputs[0]
        return True


def _fits(*arrays: Array) -> bool:
    """Whether all values are finite as float32."""
    with np.errstate(over="ignore"):
        return all(bool(np.isfinite(values.astype(np.float32)).all()) for values in arrays)


def _distinct(*nodes: Node) -> list[Node]:
    return list({id(node): node for node in nodes}.values())
