"""The options that commands share, and what they become."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, cast, get_args

import typer

from onnxslim_tk.measure.images import ImageOptions
from onnxslim_tk.measure.kinds import OutputKind
from onnxslim_tk.measure.metrics import Metric, load_metric
from onnxslim_tk.measure.validate import Progress
from onnxslim_tk.passes import PASSES
from onnxslim_tk.pipeline import Options, load
from onnxslim_tk.plan.budget import Budget
from onnxslim_tk.plan.recipe import Recipe, read_recipe
from onnxslim_tk.writing import check_place

_KINDS: Final[tuple[str, ...]] = get_args(OutputKind)
_SAMPLES: Final = "Samples"
_IMAGES: Final = "Samples from images"
_BUDGET: Final = "Budget"
_RECIPE: Final = "Recipe"
_REPORT: Final = "Report"

Source = Annotated[Path, typer.Argument(metavar="IN", help="The model.", show_default=False)]
MaybeTarget = Annotated[
    Path | None,
    typer.Argument(metavar="OUT", help="Where the result goes.", show_default=False),
]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Let the result take IN's place; OUT may be left out.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every draw at random.")]


class Layout(StrEnum):
    """Order of an image input's axes."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Channels(StrEnum):
    """Order of an image input's channels."""

    RGB = "RGB"
    BGR = "BGR"
    GREY = "L"


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Samples, and what the result must keep on them."""

    calibration: Annotated[
        Path | None,
        _option(
            _SAMPLES,
            "--calibration",
            "--samples",
            "--data",
            metavar="PATH",
            help="An .npz file, a folder of .npz files, or a folder of images.",
        ),
    ] = None
    samples_limit: Annotated[
        int | None,
        _option(_SAMPLES, min=1, metavar="N", help="Use so many samples, drawn evenly."),
    ] = None
    image_mean: Annotated[
        str | None, _option(_IMAGES, metavar="X[,X,X]", help="Subtracted after scaling.")
    ] = None
    image_std: Annotated[
        str | None, _option(_IMAGES, metavar="X[,X,X]", help="Divides after that.")
    ] = None
    image_size: Annotated[str | None, _option(_IMAGES, metavar="HxW", help="In pixels.")] = None
    image_layout: Annotated[
        Layout | None, _option(_IMAGES, case_sensitive=False, help="Read off the model by default.")
    ] = None
    image_scale: Annotated[
        float | None, _option(_IMAGES, metavar="X", help="Multiplies pixels; 1/255 by default.")
    ] = None
    image_channels: Annotated[
        Channels | None,
        _option(_IMAGES, case_sensitive=False, help="Read off the model by default."),
    ] = None
    metric: Annotated[
        str | None,
        _option(
            _BUDGET,
            metavar="NAME|module:function",
            help="Judge labelled samples by accuracy, top5, f1, auc, pearson or cer, or by a "
            "function(outputs, labels); naming one runs its module's code.",
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        _option(_BUDGET, metavar="X", help="Most that the metric may lose, in its own unit."),
    ] = None
    min_sqnr: Annotated[
        float | None,
        _option(_BUDGET, metavar="DB", help="Least signal to noise of every output, in dB."),
    ] = None
    min_agreement: Annotated[
        float | None, _option(_BUDGET, metavar="X", help="Least share of equal decisions.")
    ] = None
    min_cosine: Annotated[
        float | None, _option(_BUDGET, metavar="X", help="Least cosine of embeddings.")
    ] = None
    max_size: Annotated[
        str | None,
        _option(
            _BUDGET,
            metavar="10%|2MB",
            help="Largest file: the nearest result of that size, whatever it loses, with recipes "
            "that share weights.",
        ),
    ] = None
    max_macs: Annotated[
        str | None,
        _option(_BUDGET, metavar="70%", help="Most multiply-accumulates, by structure."),
    ] = None
    max_latency: Annotated[
        str | None,
        _option(_BUDGET, metavar="70%", help="Most time by the target's table, in the same way."),
    ] = None
    max_params: Annotated[
        str | None, _option(_BUDGET, metavar="70%", help="Most weights, in the same way.")
    ] = None
    output_kind: Annotated[
        list[str] | None,
        _option(
            _BUDGET,
            metavar="[NAME=]KIND",
            help=f"What an output is, where the guess is wrong: {', '.join(_KINDS)}.",
        ),
    ] = None

    def options(self, source: Path, seed: int, progress: Progress) -> Options:
        """What the library is told; raises typer.BadParameter for what can't be read."""
        return Options(
            calibration=self.calibration,
            limit=self.samples_limit,
            images=self._images(),
            metric=None if self.metric is None else _metric(self.metric),
            kinds=self._kinds(source),
            seed=seed,
            progress=progress,
        )

    def budget(self, usual: Budget) -> Budget:
        """``usual`` with the limits that were given in place of its own."""
        given: dict[str, Any] = {
            "max_drop": self.max_drop,
            "min_sqnr_db": self.min_sqnr,
            "min_agreement": self.min_agreement,
            "min_cosine": self.min_cosine,
            "max_size": self.max_size,
            "max_macs": self.max_macs,
            "max_latency": self.max_latency,
            "max_params": self.max_params,
        }
        return replace(usual, **{name: x for name, x in given.items() if x is not None})

    def _images(self) -> ImageOptions:
        usual = ImageOptions()
        return ImageOptions(
            mean=_numbers(self.image_mean, "--image-mean") or usual.mean,
            std=_numbers(self.image_std, "--image-std") or usual.std,
            size=_size(self.image_size),
            layout=self.image_layout.value if self.image_layout else None,
            scale=usual.scale if self.image_scale is None else self.image_scale,
            channels=self.image_channels.value if self.image_channels else None,
        )

    def _kinds(self, source: Path) -> dict[str, OutputKind]:
        if not self.output_kind:
            return {}
        names = [tensor.name for tensor in load(source).graph.outputs]
        kinds: dict[str, OutputKind] = {}
        for text in self.output_kind:
            name, equals, kind = text.rpartition("=")
            if kind not in _KINDS:
                raise typer.BadParameter(
                    f"{kind!r} is none of {', '.join(_KINDS)}", param_hint="--output-kind"
                )
            if equals and name not in names:
                raise typer.BadParameter(
                    f"the model has no output {name!r}; it has {', '.join(names[:8])}",
                    param_hint="--output-kind",
                )
            kinds |= dict.fromkeys([name] if equals else names, cast(OutputKind, kind))
        return kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices(Judging):
    """Judging, and which methods with which settings."""

    recipe: Annotated[
        str, _option(_RECIPE, metavar="NAME|FILE", help="light, balanced, small, or a YAML file.")
    ] = "balanced"
    settings: Annotated[
        list[str] | None,
        _option(_RECIPE, "--set", metavar="pass.field=value", help="Change one setting."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        _option(_RECIPE, metavar="PATTERN", help="Leave layers of such names as they are."),
    ] = None
    seed: Seed = 0

    def chosen(self) -> Recipe:
        """The recipe with the settings, patterns and limits of the command line."""
        recipe = read_recipe(self.recipe, PASSES)
        for assignment in self.settings or ():
            recipe = recipe.with_setting(assignment)
        exclude = (*recipe.exclude, *(self.exclude or ()))
        return replace(recipe, exclude=exclude, budget=self.budget(recipe.budget))


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """Where the report goes."""

    report: Annotated[
        Path | None, _option(_REPORT, metavar="FILE.json", help="Write the whole report there.")
    ] = None
    json: Annotated[
        bool, _option(_REPORT, "--json", help="Print the report as JSON, and nothing else.")
    ] = False
    quiet: Annotated[bool, _option(_REPORT, "--quiet", help="Print warnings and errors only.")] = (
        False
    )

    @property
    def silent(self) -> bool:
        """Whether tables and progress stay away."""
        return self.json or self.quiet


def place_of_result(source: Path, result: Path | None, in_place: bool) -> Path:
    """Where the result goes; raises typer.BadParameter where that isn't said, or said twice."""
    if result is None and not in_place:
        raise typer.BadParameter("a name for the result is needed, or --in-place", param_hint="OUT")
    if result is not None and in_place and result.resolve() != source.resolve():
        raise typer.BadParameter(
            f"{result} is another file than {source}; leave it out", param_hint="--in-place"
        )
    return source if result is None else result


def check_targets(source: Path, targets: Mapping[str, Path | None], in_place: bool = False) -> None:
    """Refuse files that can't be written before any work is done, by their option's name."""
    taken = {} if in_place else {source.resolve(): "the model"}
    for name, path in targets.items():
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise typer.BadParameter(f"{path} is no place for a file", param_hint=name)
        try:
            check_place(path)
        except OSError as error:
            raise typer.BadParameter(
                f"{path} cannot be written: {error.strerror}", param_hint=name
            ) from error
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise typer.BadParameter(f"{path} is {other} already", param_hint=name)


def _metric(spec: str) -> Metric:
    reach_module(spec)
    return load_metric(spec)


def reach_module(spec: str | None) -> None:
    """Let a metric's module be found where the command was called."""
    if spec is not None and ":" in spec and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"must be numbers with commas between, got {text!r}", param_hint=name
        ) from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, by, width = text.lower().partition("x")
    if not (by and height.isdecimal() and width.isdecimal()):
        raise typer.BadParameter(f"must read HEIGHTxWIDTH, got {text!r}", param_hint="--image-size")
    return int(height), int(width)
